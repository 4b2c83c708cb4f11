"""How much noise to serve with: the scale of the posterior's standard deviations, chosen on validation tasks.

    python -m benchmarks.noise_scale --data ../shared/data --posterior runs/class_to_class/posterior

The validation tasks are those that the configuration keeps out of training; no test task is looked at. One adaptation a
task and seed serves all scales, since the scale enters sampling only.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import torch

from abmll.evaluation.protocol import draw_shots
from abmll.meta.collection import Collection
from abmll.model import FewShotModel
from abmll.tasks import Query
from benchmarks.class_to_class import cell_metrics
from benchmarks.common import commit
from model_store.bases import load_base
from model_store.posteriors import load_posterior
from model_store.training import TrainingConfig

SHOWN = ("accuracy", "nll", "brier", "ece15")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/class_to_class.yaml"))
    parser.add_argument("--posterior", default=None)
    parser.add_argument("--scales", nargs="+", type=float, default=[0, 1, 2, 4])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seeds", nargs="+", type=int, default=[100, 87])
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/noise_scale"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = TrainingConfig.read(options.config)
    base = load_base(config.base, quantisation=config.quantisation)
    prior = load_posterior(options.posterior or config.id).prior
    model = FewShotModel(base.model, base.tokenizer, prior, template=config.template, defaults=config.serve)
    found: dict[float, list[dict[str, float]]] = {scale: [] for scale in options.scales}
    for task in Collection.open(options.data).read(config.data.leave_out):
        for seed in options.seeds:
            phi = model.adapt(draw_shots("16", task.train, seed), seed=seed).posterior
            items = task.test[: options.items]
            queries = [Query(item.input, item.options) for item in items]
            labels = [item.options.index(item.output) for item in items]
            for scale in options.scales:
                scaled = phi.with_noise_scale(scale) if scale else phi
                samples = options.samples if scale else 0
                answers = model.predict(scaled, queries, samples=samples, seed=seed)
                row = {"probabilities": [a.predictive.probabilities for a in answers], "labels": labels}
                information = np.mean([a.predictive.uncertainty.mutual_information for a in answers])
                found[scale].append({**cell_metrics(row), "mutual_information": float(information)})
            print(task.name, seed, {s: round(rows[-1]["nll"], 3) for s, rows in found.items()}, flush=True)
    names = (*SHOWN, "mutual_information")
    means = {
        scale: {name: float(np.mean([row[name] for row in rows])) for name in names}
        for scale, rows in found.items()
    }
    table = [f"| scale | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    table += [f"| {s:g} | " + " | ".join(f"{m[name]:.4f}" for name in names) + " |" for s, m in means.items()]
    command = "python -m benchmarks.noise_scale --data ../shared/data --seeds {} --scales {} --items {} --samples {}".format(
        " ".join(map(str, options.seeds)),
        " ".join(f"{scale:g}" for scale in options.scales),
        options.items,
        options.samples,
    )
    about = (
        f"Scale of every standard deviation of the posterior (c = {prior.config.spread_offset}); 0 is the mean alone. "
        f"Validation tasks {', '.join(config.data.leave_out)}; support seeds {options.seeds}, 16 examples drawn uniformly, "
        f"{options.items} items, S = {options.samples}. Command: `{command}`. Commit {commit()}. "
        f"Machine: {platform.machine()}, torch {torch.__version__}, {options.threads} thread(s)."
    )
    text = "# Noise scale on validation tasks\n\n" + about + "\n\n" + "\n".join(table) + "\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".md").write_text(text)
    options.out.with_suffix(".json").write_text(json.dumps(means, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
