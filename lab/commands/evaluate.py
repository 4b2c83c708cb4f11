"""`abmll evaluate`: one configuration file to a results folder, with a progress bar, resumable cell by cell."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from abmll.errors import AbmllError
from service.cli.progress import progress_bar

console = Console()


def evaluate(
    config: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="The study: see configs/evaluate/.")
    ],
    out: Annotated[Path | None, typer.Option(help="Results folder; default runs/<id>.")] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Cells at a time, each in a process with a model of its own.")
    ] = 1,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Only make tables and plots from the cells that are there.")
    ] = False,
) -> None:
    """Compare methods on held-out tasks. Interrupted, the same command goes on where it was."""
    try:
        # Model code is imported here so that `abmll --help` answers at once.
        from lab.evaluation.config import EvaluationConfig  # noqa: PLC0415
        from lab.evaluation.results import report  # noqa: PLC0415
        from lab.evaluation.run import run_evaluation  # noqa: PLC0415
    except ModuleNotFoundError as error:
        console.print(
            f"[red]{error}: evaluation needs the extra `eval`: pip install '.\\[eval]'[/red]", highlight=False
        )
        raise typer.Exit(2) from error
    from lab.evaluation.records import Cell  # noqa: PLC0415
    from model_store.errors import StoreError  # noqa: PLC0415

    try:
        study = EvaluationConfig.read(config)
        folder = out or Path("runs") / study.id
        if not report_only:
            with progress_bar(console, "{task.fields[cell]}") as progress:
                bar = progress.add_task(study.id, total=None, cell="")

                def on_cell(done: int, total: int, cell: Cell) -> None:
                    told = f"{cell.method} {cell.task} k={cell.shots} seed {cell.seed}"
                    progress.update(bar, completed=done, total=total, cell=escape(told))

                run_evaluation(study, folder, on_cell, processes=processes)
        written = report(study, folder, "abmll " + shlex.join(sys.argv[1:]))
    except (AbmllError, StoreError) as error:
        console.print(f"[red]{escape(str(error))}[/red]", highlight=False)
        raise typer.Exit(2) from error
    console.print(f"Results written to {written}.")
