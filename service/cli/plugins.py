"""Commands that other packages add to `abmll`.

A package registers a command under the entry point group `abmll.commands`: its name, and the
function that typer calls, or the `Typer` of a group of commands. Its module is imported whenever
`abmll` starts, so it imports what is slow inside the functions.
"""

from __future__ import annotations

from importlib.metadata import entry_points

import typer

GROUP = "abmll.commands"


def add_registered_commands(app: typer.Typer) -> None:
    """Add every registered command to `app`, in the order of their names."""
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        command = entry.load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=entry.name)
        else:
            app.command(entry.name)(command)
