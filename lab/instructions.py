"""Read a file of task instructions: YAML, a mapping from the names of tasks."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from abmll.errors import AbmllError
from abmll.meta.instructions import TaskInstructions


def read_instructions(path: Path) -> dict[str, TaskInstructions]:
    """Return what each task asks. Raises `AbmllError` for a file that is not of this form."""
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
        return TypeAdapter(dict[str, TaskInstructions]).validate_python(values, extra="forbid")
    except (ValidationError, yaml.YAMLError, OSError) as error:
        raise AbmllError(f"{path.name}: {error}") from error
