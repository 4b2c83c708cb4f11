"""Test-time settings of a posterior (steps, learning rate, batch size), chosen on validation tasks; no test task is looked at.

    python -m benchmarks.serve_settings --data ../shared/data --config configs/class_to_class.yaml

A run of many steps passes through every smaller number of steps, so one adaptation a task, seed, learning rate and batch
size serves a whole column. Predictions are those of the mean (S = 0).
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch

from abmll.adapt import AdaptSettings
from abmll.evaluation.protocol import draw_shots
from abmll.meta.collection import Collection
from abmll.model import FewShotModel
from abmll.posterior import TaskPosterior
from abmll.tasks import Example, Query
from benchmarks.class_to_class import cell_metrics
from benchmarks.common import commit
from model_store.bases import load_base
from model_store.posteriors import load_posterior
from model_store.training import TrainingConfig

SHOWN = ("accuracy", "nll", "brier", "ece15")


def measure(model: FewShotModel, phi: TaskPosterior | None, items: Sequence[Example]) -> dict[str, float]:
    answers = model.predict(phi, [Query(i.input, i.options) for i in items], samples=0, truncate=True)
    labels = [item.options.index(item.output) for item in items]
    return cell_metrics({"probabilities": [a.predictive.probabilities for a in answers], "labels": labels})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/class_to_class.yaml"))
    parser.add_argument("--posterior", default=None)
    parser.add_argument("--steps", nargs="+", type=int, default=[0, 6, 12, 20])
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[5e-4, 1e-3, 2e-3])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[8])
    parser.add_argument("--seeds", nargs="+", type=int, default=[100, 87])
    parser.add_argument("--shots", default="16", help="as in studies: `16`, `16 balanced`, `16 per class`")
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serve_settings"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = TrainingConfig.read(options.config)
    base = load_base(config.base, quantisation=config.quantisation)
    prior = load_posterior(options.posterior or config.id).prior
    model = FewShotModel(base.model, base.tokenizer, prior, template=config.template)
    rows: list[dict[str, object]] = []
    grid = list(product(options.learning_rates, options.batch_sizes))
    for task, seed in product(Collection.open(options.data).read(config.data.leave_out), options.seeds):
        support = draw_shots(options.shots, task.train, seed)
        items = task.test[: options.items]
        start = measure(model, None, items) if 0 in options.steps else None
        for learning_rate, batch_size in grid:
            settings = AdaptSettings(max(options.steps), learning_rate, batch_size, 0.0)
            run = model.begin_adapt(support, settings, seed, truncate=True)
            about = {
                "task": task.name,
                "seed": seed,
                "learning_rate": learning_rate,
                "batch_size": batch_size,
            }
            if start:
                rows.append({**about, "steps": 0, **start})
            while not run.done:
                model.step([run])
                if len(run.losses) in options.steps:
                    rows.append({**about, "steps": len(run.losses), **measure(model, run.posterior, items)})
            print(
                task.name,
                seed,
                learning_rate,
                batch_size,
                [
                    (r["steps"], round(r["accuracy"], 3), round(r["nll"], 3))
                    for r in rows[-len(options.steps) :]
                ],
                flush=True,
            )
    table = [
        f"| learning rate | batch | steps | {' | '.join(SHOWN)} |",
        "|---" * (len(SHOWN) + 3) + "|",
    ]
    for (learning_rate, batch_size), steps in product(grid, options.steps):
        same = [
            r
            for r in rows
            if (r["learning_rate"], r["batch_size"], r["steps"]) == (learning_rate, batch_size, steps)
        ]
        means = " | ".join(f"{np.mean([r[name] for r in same]):.3f}" for name in SHOWN)
        table.append(f"| {learning_rate:g} | {batch_size} | {steps} | {means} |")
    about_run = (
        f"Posterior `{options.posterior or config.id}`. Validation tasks {', '.join(config.data.leave_out)}; support seeds "
        f"{options.seeds}, {options.shots} examples, {options.items} items, S = 0. Commit {commit()}. "
        f"Machine: {platform.machine()}, torch {torch.__version__}, {options.threads} thread(s)."
    )
    text = "# Test-time settings on validation tasks\n\n" + about_run + "\n\n" + "\n".join(table) + "\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".md").write_text(text)
    options.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
