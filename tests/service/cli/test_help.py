"""`abmll --help` answers without model code."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "numpy", "fastapi", "uvicorn")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["predict", "--help"], ["decide", "--help"], ["serve", "--print-config"]]
)
def test_help_and_configuration_are_shown_without_importing_model_code(arguments: list[str]) -> None:
    program = (
        "import sys; from service.cli.main import app; app(standalone_mode=False);"
        f"sys.exit(', '.join(m for m in {HEAVY} if m in sys.modules) or 0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments], check=False, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout


def test_help_lists_the_commands_in_groups() -> None:
    """The server comes first, then commands that compute in this process, then those for PEFT."""
    from typer.main import get_command

    from service.cli.main import app

    groups = ["serve", "demo", "adapt", "predict", "decide", "diagnose", "models", "export", "import-peft"]
    shown = list(get_command(app).commands)  # type: ignore[attr-defined]
    assert [name for name in shown if name in groups] == groups
