"""`abmll tasks`: the training collection from its public sources."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lab.commands.failures import failures_shown
from model_store.terminal import shown

console = Console(emoji=False)
_err = Console(stderr=True, emoji=False)

tasks = typer.Typer(
    help="Get the tasks that posteriors are trained on from their public sources.", no_args_is_help=True
)
SourcesFile = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="Another manifest than lab/task_sources/sources.yaml."),
]


@tasks.command("list")
def list_tasks(sources: SourcesFile = None) -> None:
    """List the tasks with their source and its licence, and those that have no source here."""
    with failures_shown():
        from lab.task_sources.manifest import SHIPPED, Sources  # noqa: PLC0415

        found = Sources.read(sources or SHIPPED)
    table = Table("task", "kind", "source", "licence", "to note")
    for name, source in found.tasks.items():
        place = f"{source.repository}@{source.revision[:8]}"
        table.add_row(*map(shown, (name, source.kind, place, source.licence, source.note)))
    console.print(table)
    for name, why in found.not_covered.items():
        console.print(f"{shown(name)} has no source here: {shown(why)}.", soft_wrap=True)


@tasks.command()
def fetch(
    out: Annotated[Path, typer.Option(help="Folder of the collection; tasks that are there stay.")],
    task: Annotated[list[str] | None, typer.Option(help="Only this task; give it several times.")] = None,
    sources: SourcesFile = None,
    mirror: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Folder with OWNER/NAME/FILE, read instead of the hub."
        ),
    ] = None,
) -> None:
    """Download tasks and write them in the format of the collection, for `abmll meta-train`.

    Interrupted, the same command goes on. It exits with 1 where a task could not be fetched.
    """
    with failures_shown():
        import datasets  # noqa: F401, PLC0415 before anything is downloaded

        from abmll.errors import AbmllError  # noqa: PLC0415
        from lab.task_sources.fetch import fetch_task, fetched  # noqa: PLC0415
        from lab.task_sources.manifest import SHIPPED, Sources  # noqa: PLC0415
        from model_store.errors import StoreError  # noqa: PLC0415
        from model_store.progress import progress_bar  # noqa: PLC0415

        chosen = Sources.read(sources or SHIPPED).chosen(task or ())
        there = fetched(out)
        failed = 0
        for name, source in chosen.items():
            if name in there:
                console.print(f"{shown(name)}: there")
                continue
            try:
                with progress_bar() as report:
                    entry = fetch_task(name, source, out, mirror=mirror, report=report)
            except (AbmllError, StoreError) as error:
                failed += 1
                _err.print(f"[red]error:[/] {shown(str(error))}", highlight=False, soft_wrap=True)
            else:
                counts = f"{entry['n_train']} training and {entry['n_test']} test examples"
                console.print(f"{shown(name)}: {counts}", highlight=False)
    if failed:
        _err.print(f"{failed} of {len(chosen)} tasks were not fetched. The same command tries them again.")
        raise typer.Exit(1)
