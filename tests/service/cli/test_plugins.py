"""Commands that other packages register are commands of `abmll`, and do not slow its start."""

import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from service.cli import plugins
from service.cli.main import app

ROOT = Path(__file__).parents[3]
PROJECTS = [
    tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"] for name in (".", "client")
]


def test_a_registered_command_is_one_of_abmll(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        EntryPoint("second", "os:getpid", plugins.GROUP),
        EntryPoint("first", "os:getcwd", plugins.GROUP),
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: found if group == "abmll.commands" else [])
    program = typer.Typer()
    plugins.add_registered_commands(program)
    assert [command.name for command in program.registered_commands] == ["first", "second"]
    assert CliRunner().invoke(program, ["second"]).exit_code == 0


def test_a_registered_group_of_commands_is_one_of_abmll(monkeypatch: pytest.MonkeyPatch) -> None:
    group = EntryPoint("tasks", "lab.commands.tasks:tasks", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda **_: [group])
    program = typer.Typer()
    plugins.add_registered_commands(program)
    assert "fetch" in CliRunner().invoke(program, ["tasks", "--help"]).output


def test_the_laboratory_and_the_client_register_their_commands() -> None:
    """The installed entry points are those of `pyproject.toml`; after a change, install again."""
    declared: dict[str, str] = {}
    for project in PROJECTS:
        declared |= project["entry-points"][plugins.GROUP]
    assert {entry.name: entry.value for entry in entry_points(group=plugins.GROUP)} == declared
    assert set(declared) == {"evaluate", "mcp", "meta-train", "tasks"}
    commands = (*app.registered_commands, *app.registered_groups)
    assert set(declared) <= {command.name for command in commands}


def test_help_imports_neither_torch_nor_what_the_laboratory_needs() -> None:
    script = (
        "import sys; from service.cli.main import app\n"
        "print(sorted({'torch', 'sklearn', 'matplotlib', 'yaml', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
