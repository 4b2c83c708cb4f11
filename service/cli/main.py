"""The command `abmll`: its groups of commands, put together.

Commands import model code when they run, so that `abmll --help` answers in less than a second.
"""

from __future__ import annotations

import os
import warnings
from importlib.metadata import version
from typing import Annotated

import typer

from service.cli import (
    decide,
    doctor,
    fetch,
    keys,
    label,
    local,
    models,
    names,
    peft,
    playground,
    posterior,
    readapt,
    serve,
    store,
)
from service.cli.output import escape_what_cannot_be_encoded, out
from service.cli.plugins import add_registered_commands
from service.cli.settings_options import SettingsCommand

# OpenMP reads this when torch is first imported. Waiting threads then sleep instead of spinning,
# which on a busy 2-core machine took an adaptation from 70 s to 8 s.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

escape_what_cannot_be_encoded()
# What libraries will rename is for their users in code: it would be on the screen with each free
# text. Workers are processes of their own and read the variable.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:torch.nn.modules.module")

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        out.print(f"abmll {version('abmll-serve')}", highlight=False)
        raise typer.Exit


@app.callback()
def abmll(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Few-shot adaptation of language models, with uncertainty you can act on."""


for command in (
    serve.serve,
    serve.demo,
    fetch.fetch,
    doctor.doctor,
    local.adapt,
    local.predict,
    decide.decide,
    label.label,
    local.diagnose,
    readapt.readapt,
    models.models,
    peft.export,
    peft.import_peft,
):
    app.command(cls=SettingsCommand)(command)
app.add_typer(names.names, name="names")
app.add_typer(keys.keys, name="keys")
app.add_typer(store.store, name="store")
app.add_typer(posterior.posterior, name="posterior")
app.command("open", cls=SettingsCommand)(playground.open_playground)
add_registered_commands(app)
