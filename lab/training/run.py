"""Run a meta-training: from its configuration to a posterior with its manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from abmll.meta.train import meta_train, trained_prior
from abmll.meta.whitening import fit_whitening
from lab.provenance import commit
from lab.training.card_data import mean_losses, training_record
from lab.training.configuration import TrainingConfig
from lab.training.preparation import prepare
from model_store.posteriors import LoadedPosterior, PosteriorManifest


def run_training(
    config: TrainingConfig, folder: Path, on_visit: Callable[[dict[str, Any]], None], *, resume: bool = True
) -> LoadedPosterior:
    """Meta-train in `folder` and return the posterior.

    With `resume`, goes on with the run found in `folder`, which holds the checkpoint,
    `metrics.jsonl`, and the commit that the run was started at. `on_visit` gets the metrics of each
    visit. Raises `AbmllError` for data that are not there or do not fit, and as `load_base`.
    """
    collection, names, base, model, instructions = prepare(config)
    folder.mkdir(parents=True, exist_ok=True)
    started_at = folder / "commit"
    if not started_at.exists():
        started_at.write_text(commit() + "\n")
    tasks = collection.read(names)
    for metrics in meta_train(
        model,
        tasks,
        config.meta,
        folder,
        resume=resume,
        tokens_per_pass=config.tokens_per_pass,
        instructions=instructions,
    ):
        on_visit(metrics)
    trained = trained_prior(model, folder)
    chosen = config.posterior.noise
    noise = replace(trained.config.noise, scale=chosen.scale, readout_scale=chosen.readout_scale)
    finished = replace(config.posterior, noise=noise)
    prior = replace(
        trained,
        config=finished,
        whitening=fit_whitening(model, tasks, config.meta.max_row_tokens) if finished.similarity else None,
    )
    manifest = PosteriorManifest.of(
        prior,
        id=config.id,
        base=base.identity,
        adapt=asdict(config.serve),
        template=(config.serve_template or config.template).to_json(),
        training=training_record(config, collection, names, started_at.read_text().strip()),
        metrics=mean_losses(folder),
    )
    return LoadedPosterior(prior, manifest)
