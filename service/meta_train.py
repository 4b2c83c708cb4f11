"""`abmll meta-train`: one configuration file to an artifact, with a progress bar, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from abmll.errors import AbmllError

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
) -> None:
    """Meta-train a global posterior and write it as an artifact. Interrupted, the same command goes on."""
    # Model code is imported here so that `abmll --help` answers at once.
    from model_store.posteriors import PosteriorManifest, save_posterior  # noqa: PLC0415
    from model_store.training import TrainingConfig, run_training  # noqa: PLC0415

    try:
        run = TrainingConfig.read(config)
        folder = out or Path("runs") / run.id
        with _bar() as progress:
            bar = progress.add_task(run.id, total=run.meta.visits, task="", loss="")
            recent: list[float] = []

            def on_visit(metrics: dict[str, Any]) -> None:
                recent[:] = [*recent[-19:], metrics["losses"][-1]]
                mean = sum(recent) / len(recent)
                progress.update(bar, completed=metrics["visit"], task=metrics["task"], loss=f"{mean:.3f}")

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


def _bar() -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[task]}  inner loss (last 20) {task.fields[loss]}"),
        console=console,
    )
