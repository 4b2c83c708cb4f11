"""Commands that other packages add to `abmll`.

A package registers a command under the entry point group `abmll.commands`: its name, and the
function that typer calls. The module of that function is imported whenever `abmll` starts, so it
imports what is slow inside the function.
"""

from __future__ import annotations

from importlib.metadata import entry_points

import typer

GROUP = "abmll.commands"


def add_registered_commands(app: typer.Typer) -> None:
    """Add every registered command to `app`, in the order of their names."""
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        app.command(entry.name)(entry.load())
