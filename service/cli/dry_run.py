"""`--dry-run`: what files mean, and what the command would take on this machine."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from model_store.terminal import shown
from service.cli.local_engine import without_doing
from service.cli.output import err, show
from service.settings import Settings

if TYPE_CHECKING:
    from service.engine.engine import Engine
    from service.engine.pricing import DryRun

OnlyLook: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Load the model, show what the files mean and what they would take on this machine, and stop. "
        "Exits with 2 where it would be refused.",
    ),
]
REFUSED = 2  # exit status of a dry run


def show_dry_run(
    settings: Settings,
    url: str | None,
    look: Callable[[Engine], Coroutine[Any, Any, DryRun]],
    as_json: bool,
    *,
    stored: str | None,
) -> None:
    """Print what `look` finds. Exits with 2 where the command itself would be refused.

    `stored` is the id or name of the adapter of the data folder that it needs. Raises what `look`
    raises.
    """
    from service.cli.tables import dry_run_table  # noqa: PLC0415

    if url is not None:
        raise typer.BadParameter("--dry-run measures this machine: leave --url out")
    found = without_doing(settings, look, stored=stored)
    answer = asdict(found)
    show(answer, dry_run_table(answer), as_json)
    if found.refusal is not None:
        err.print(f"[red]refused:[/] {shown(found.refusal)}", highlight=False, soft_wrap=True)
        raise typer.Exit(REFUSED)
