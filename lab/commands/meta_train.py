"""`abmll meta-train`: one configuration file to an artifact, with a progress bar, resumable."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from abmll.errors import AbmllError
from service.cli.progress import progress_bar

if TYPE_CHECKING:
    from lab.training import DryRun

console = Console()


def meta_train(
    config: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The run: see configs/.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/<id>.")] = None,
    artifact: Annotated[
        Path | None, typer.Option(help="Folder for the posterior; default <out>/posterior.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start again instead of resuming the run found in --out.")
    ] = False,
    only_look: Annotated[
        bool,
        typer.Option("--dry-run", help="Check the data, count tokens and estimate the time; train nothing."),
    ] = False,
) -> None:
    """Meta-train a global posterior and write it as an artifact. Interrupted, the same command goes on."""
    # Model code is imported here so that `abmll --help` answers at once.
    from lab.training import TrainingConfig, dry_run, run_training  # noqa: PLC0415
    from model_store.posteriors import PosteriorManifest, save_posterior  # noqa: PLC0415

    try:
        run = TrainingConfig.read(config)
        if only_look:
            _show(dry_run(run), run.meta.visits)
            return
        folder = out or Path("runs") / run.id
        with progress_bar(
            console, "{task.fields[task]}  inner loss (last 20) {task.fields[loss]}"
        ) as progress:
            bar = progress.add_task(run.id, total=run.meta.visits, task="", loss="")
            recent: list[float] = []

            def on_visit(metrics: dict[str, Any]) -> None:
                recent[:] = [*recent[-19:], metrics["losses"][-1]]
                mean = sum(recent) / len(recent)
                progress.update(
                    bar, completed=metrics["visit"], task=", ".join(metrics["tasks"]), loss=f"{mean:.3f}"
                )

            result = run_training(run, folder, on_visit, resume=not fresh)
        manifest = PosteriorManifest.of(
            result.prior,
            id=run.id,
            base=result.base,
            adapt=result.adapt,
            template=run.template.to_json(),
            training=result.record,
            metrics=result.metrics,
        )
        target = artifact or folder / "posterior"
        save_posterior(target, result.prior, manifest)
    except AbmllError as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        raise typer.Exit(2) from error
    console.print(f"Posterior {run.id} written to {target}.")


def _show(found: DryRun, visits: int) -> None:
    table = Table("task", "examples", "that fit", "median tokens", "longest", "to look at")
    for task in found.tasks:
        counts = (task.examples, task.fitting, task.median_tokens, task.longest_tokens)
        table.add_row(task.name, *map(str, counts), escape("; ".join(task.problems)))
    console.print(table)
    for one, other, count in found.shared:
        console.print(f"{one} and {other} share {count} inputs: neither may test what the other trained.")
    total = found.tokens_per_visit * visits
    console.print(f"{visits} visits of {found.tokens_per_visit:,.0f} tokens each: {total:,.0f} tokens.")
    if math.isnan(found.seconds):
        console.print("[red]The run would fail: leave out the tasks of which no example fits.[/red]")
        raise typer.Exit(2)
    console.print(f"About {found.seconds / 3600:.1f} h on this machine.")
