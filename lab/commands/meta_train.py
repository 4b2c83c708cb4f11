"""`abmll meta-train`: from one configuration file to a posterior artifact."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lab.commands.failures import failures_shown
from model_store.progress import counting_bar, line_without_terminal
from model_store.terminal import shown

if TYPE_CHECKING:
    from lab.training.dry_run import DryRun

console = Console(emoji=False)
err = Console(stderr=True, emoji=False)


def meta_train(
    config: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The run: see configs/.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/<id>.")] = None,
    artifact: Annotated[
        Path | None, typer.Option(help="Folder for the posterior; default <out>/posterior.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start again instead of resuming the run found in --out.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Where to train: cpu, cuda, cuda:1; by default as the file says.")
    ] = None,
    only_look: Annotated[
        bool,
        typer.Option("--dry-run", help="Check the data, count tokens and estimate the time; train nothing."),
    ] = False,
) -> None:
    """Meta-train a global posterior and write it as an artifact.

    Interrupted, the same command goes on.
    """
    with failures_shown():
        from lab.training.configuration import TrainingConfig  # noqa: PLC0415
        from lab.training.dry_run import dry_run  # noqa: PLC0415
        from lab.training.run import run_training  # noqa: PLC0415
        from model_store.posteriors import save_posterior  # noqa: PLC0415

        run = TrainingConfig.read(config)
        if device is not None:
            run = replace(run, device=device)
        if only_look:
            _show(dry_run(run), run.meta.visits)
            return
        folder = out or Path("runs") / run.id
        visits = run.meta.visits
        line_without_terminal(err, f"meta-training {run.id}: {visits} visits, into {folder}")
        with counting_bar(err, "{task.fields[task]}  inner loss (last 20) {task.fields[loss]}") as progress:
            bar = progress.add_task(run.id, total=visits, task="", loss="")
            recent: list[float] = []

            def on_visit(metrics: dict[str, Any]) -> None:
                recent[:] = [*recent[-19:], metrics["losses"][-1]]
                done, tasks = metrics["visit"], ", ".join(metrics["tasks"])
                mean = f"{sum(recent) / len(recent):.3f}"
                progress.update(bar, completed=done, task=tasks, loss=mean)
                line = f"visit {done} of {visits}: {tasks}, inner loss (last 20) {mean}"
                line_without_terminal(err, line)

            trained = run_training(run, folder, on_visit, resume=not fresh)
        target = artifact or folder / "posterior"
        save_posterior(target, trained.prior, trained.manifest)
    console.print(f"Posterior {shown(run.id)} written to {shown(str(target))}.")


def _show(found: DryRun, visits: int) -> None:
    """Print what a dry run found. Exits with 2 where the run itself would fail."""
    table = Table("task", "examples", "that fit", "median tokens", "longest", "to look at")
    for task in found.tasks:
        counts = (task.examples, task.fitting, task.median_tokens, task.longest_tokens)
        table.add_row(shown(task.name), *map(str, counts), shown("; ".join(task.problems)))
    console.print(table)
    for one, other, count in found.shared:
        pair = f"{shown(one)} and {shown(other)}"
        console.print(f"{pair} share {count} inputs: neither may test what the other trained.")
    total = found.tokens_per_visit * visits
    console.print(f"{visits} visits of {found.tokens_per_visit:,.0f} tokens each: {total:,.0f} tokens.")
    if math.isnan(found.seconds):
        console.print("[red]The run would fail: leave out the tasks of which no example fits.[/red]")
        raise typer.Exit(2)
    console.print(f"About {found.seconds / 3600:.1f} h on this machine.")
