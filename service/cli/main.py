"""The command `abmll`: its groups of commands, put together.

Commands import model code when they run, so that `abmll --help` answers in less than a second.
"""

from __future__ import annotations

import os
import warnings
from importlib.metadata import version
from typing import Annotated

import typer

from service.cli import decide, keys, label, local, models, names, peft, readapt, serve, store
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
    help="Few-shot adaptation of language models, with uncertainty you can act on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        out.print(f"abmll {version('abmll-serve')}", highlight=False)
        raise typer.Exit


@app.callback()
def _of_every_command(
    _: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    pass


for command in (
    serve.serve,
    serve.demo,
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
add_registered_commands(app)
