"""`abmll evaluate`: from one configuration file to a results folder."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lab.commands.failures import failures_shown
from model_store.progress import counting_bar, line_without_terminal
from model_store.terminal import shown

if TYPE_CHECKING:
    from lab.evaluation.cells import Cell

console = Console(emoji=False)
err = Console(stderr=True, emoji=False)


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
    report: Annotated[
        bool, typer.Option("--report", help="Write tables and plots as one HTML file too, report.html.")
    ] = False,
) -> None:
    """Compare methods on held-out tasks. Interrupted, the same command goes on where it was."""
    with failures_shown():
        from lab.evaluation.configuration import EvaluationConfig  # noqa: PLC0415
        from lab.evaluation.html_report import write_html  # noqa: PLC0415
        from lab.evaluation.results import write_report  # noqa: PLC0415
        from lab.evaluation.run import run_evaluation  # noqa: PLC0415

        study = EvaluationConfig.read(config)
        folder = out or Path("runs") / study.id
        if not report_only:
            line_without_terminal(err, f"evaluating {study.id}, into {folder}")
            with counting_bar(err, "{task.fields[cell]}") as progress:
                bar = progress.add_task(study.id, total=None, cell="")

                def on_cell(done: int, total: int, cell: Cell) -> None:
                    name = f"{cell.method} {cell.task} k={cell.shots} seed {cell.seed}"
                    progress.update(bar, completed=done, total=total, cell=name)
                    line_without_terminal(err, f"cell {done} of {total}: {name}")

                run_evaluation(study, folder, on_cell, processes=processes)
        written = write_report(study, folder, "abmll " + shlex.join(sys.argv[1:]))
        if report:
            written = write_html(folder)
    console.print(f"Results written to {shown(str(written))}.")
