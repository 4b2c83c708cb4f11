"""Read configuration files: YAML into a record, where one file can take over another's values.

A file with `like: OTHER.yaml` holds what differs from that file, whose path is relative to its own
folder. A mapping takes over key by key. A list, or any other value, replaces the other's as a
whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from abmll.errors import AbmllError

T = TypeVar("T")


def read_configuration(record: type[T], path: Path) -> T:
    """Read `path` as a `record`, which is a dataclass.

    Raises `AbmllError` that names the file and the wrong field, and where `like` comes back to a
    file that it started from.
    """
    try:
        found: T = TypeAdapter(record).validate_python(_values(path), extra="forbid")
    except (ValidationError, yaml.YAMLError, OSError) as error:
        raise AbmllError(f"{path.name}: {error}") from error
    return found


def _values(path: Path, passed: tuple[Path, ...] = ()) -> Any:
    """Return the values of `path` over those of the file that it is like.

    `passed` are the files that led here.
    """
    if path.resolve() in passed:
        raise AbmllError(f"`like` comes back to {path.name}")
    values = yaml.safe_load(path.read_text("utf-8"))
    if not isinstance(values, dict) or "like" not in values:
        return values
    return _merged(_values(path.parent / values.pop("like"), (*passed, path.resolve())), values)


def _merged(values: Any, changes: Any) -> Any:
    if not isinstance(values, dict) or not isinstance(changes, dict):
        return changes
    return {**values, **{key: _merged(values.get(key), change) for key, change in changes.items()}}
