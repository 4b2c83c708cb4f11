"""Held-out tasks: adapting from the shipped theta against the same steps from an untrained one (B = 0).

    python -m benchmarks.class_to_class --data ../shared/data

For every MetaICL `class_to_class` test task and support seed, both arms adapt on the same 16 examples with the same settings
and answer the same test items. Finished cells are kept in `--work` (JSON Lines), so an interrupted run goes on;
the table goes to `--out`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from abmll.meta.collection import Collection
from abmll.model import FewShotModel
from abmll.tasks import Query, Task, draw_support
from benchmarks.common import commit
from model_store.bases import load_base
from model_store.posteriors import load_posterior
from model_store.training import TrainingConfig

SPLIT = "metaicl/class_to_class"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/class_to_class.yaml"))
    parser.add_argument("--arms", nargs="+", default=["untrained", "trained"])
    parser.add_argument("--samples", nargs="+", type=int, default=[0, 16])
    parser.add_argument("--seeds", nargs="+", type=int, default=[13, 21, 42])
    parser.add_argument("--tasks", nargs="+", help="only these of the split's test tasks")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/eval_class_to_class"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/class_to_class"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    collection = Collection.open(options.data)
    tasks = collection.read(options.tasks or collection.names(SPLIT, "test"))
    for arm in options.arms:
        run_arm(arm, tasks, options)
    rows = [
        json.loads(line)
        for path in sorted(options.work.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    wanted = [row for row in rows if row["arm"] in options.arms and row["seed"] in options.seeds]
    wanted = [row for row in wanted if row["samples"] in options.samples]
    if len(options.arms) * len(options.samples) > 1:
        write_report(wanted, tasks, options)


def run_arm(arm: str, tasks: list[Task], options: argparse.Namespace) -> None:
    """Adapt and predict in every cell that is not done yet."""
    path = options.work / f"{arm}.jsonl"
    done = (
        {(r["task"], r["seed"], r["samples"]) for r in map(json.loads, path.read_text().splitlines())}
        if path.exists()
        else set()
    )
    todo = [
        (t, s)
        for s in options.seeds
        for t in tasks
        if any((t.name, s, n) not in done for n in options.samples)
    ]
    if not todo:
        return
    model = load_arm(arm, TrainingConfig.read(options.config))
    for task, seed in todo:
        support = draw_support(task.train, options.shots, seed)
        started = time.perf_counter()
        adaptation = model.adapt(support, seed=seed)
        adapted = time.perf_counter()
        items = task.test[: options.items]
        for samples in options.samples:
            if (task.name, seed, samples) in done:
                continue
            begun = time.perf_counter()
            found = model.predict(
                adaptation.posterior,
                [Query(i.input, i.options) for i in items],
                samples=samples,
                seed=seed,
                truncate=True,
            )
            row = {
                "arm": arm, "task": task.name, "seed": seed, "samples": samples, "options": items[0].options,
                "labels": [item.options.index(item.output) for item in items],
                "probabilities": [[round(p, 6) for p in f.predictive.probabilities] for f in found],
                "mutual_information": [round(f.predictive.uncertainty.mutual_information, 6) for f in found],
                "adapt_seconds": round(adapted - started, 2), "predict_seconds": round(time.perf_counter() - begun, 2),
                "settings": asdict(model.defaults), "commit": commit(),
            }  # fmt: skip
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{arm} {task.name} seed {seed} S={samples}: {metrics([row])['accuracy']:.3f}", flush=True)


def load_arm(arm: str, config: TrainingConfig) -> FewShotModel:
    """The same base, adapter layout, template and test-time settings; only theta differs."""
    base = load_base(config.base, quantisation=config.quantisation)
    prior = (
        replace(config.adapter, noise_scale=config.noise_scale)
        if arm == "untrained"
        else load_posterior(config.id).prior
    )
    return FewShotModel(base.model, base.tokenizer, prior, template=config.template, defaults=config.serve)


def metrics(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Means over rows (cells) of each cell's own metrics."""
    cells = [cell_metrics(row) for row in rows]
    return {name: float(np.mean([cell[name] for cell in cells])) for name in cells[0]}


def cell_metrics(row: dict[str, Any]) -> dict[str, float]:
    p, y = np.array(row["probabilities"]), np.array(row["labels"])
    p = p / p.sum(1, keepdims=True)
    classes = list(range(p.shape[1]))
    correct = p.argmax(1) == y
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # labels that do not occur in these items
        return {
            "accuracy": float(correct.mean()),
            "nll": float(log_loss(y, p, labels=classes)),
            "brier": float(brier_score_loss(y, p, labels=classes, scale_by_half=False)),
            "ece15": float(
                multiclass_calibration_error(torch.tensor(p), torch.tensor(y), p.shape[1], n_bins=15)
            ),
            "mean_abs_calibration_gap": float(np.abs(p.max(1) - correct).mean()),
        }


def write_report(rows: list[dict[str, Any]], tasks: list[Task], options: argparse.Namespace) -> None:
    """Markdown and JSON: means over tasks and seeds, the last arm against the first, and every task."""
    names = [task.name for task in tasks]
    arms = [(arm, n) for arm in options.arms for n in options.samples]

    def by_task(arm: str, n: int, metric: str) -> np.ndarray[Any, Any]:
        cells: dict[str, list[float]] = {name: [] for name in names}
        for row in rows:
            if (row["arm"], row["samples"]) == (arm, n):
                cells[row["task"]].append(cell_metrics(row)[metric])
        return np.array([np.mean(cells[name]) for name in names])

    def cell(values: np.ndarray[Any, Any]) -> str:
        return f"{values.mean():.3f} ± {values.std(ddof=1) / np.sqrt(len(values)):.3f}"

    shown = ["accuracy", "nll", "brier", "ece15", "mean_abs_calibration_gap"]
    lines = [f"| theta | S | {' | '.join(shown)} |", "|---" * (len(shown) + 2) + "|"]
    summary: dict[str, Any] = {}
    for arm, n in arms:
        values = {metric: by_task(arm, n, metric) for metric in shown}
        lines.append(f"| {arm} | {n} | " + " | ".join(cell(values[metric]) for metric in shown) + " |")
        summary[f"{arm}/S={n}"] = {
            m: dict(zip(names, v.round(4).tolist(), strict=True)) for m, v in values.items()
        }
    (one, m), (other, n) = arms[0], arms[-1]
    titles = f"{one} S={m}", f"{other} S={n}"
    paired = [f"{metric} {cell(by_task(other, n, metric) - by_task(one, m, metric))}" for metric in shown]
    detail = [
        f"| task | {' | '.join(f'{x} {t}' for x in ('accuracy', 'NLL') for t in titles)} |",
        "|---" * 5 + "|",
    ]
    columns = [by_task(*arm, metric) for metric in ("accuracy", "nll") for arm in (arms[0], arms[-1])]
    detail += [
        f"| {name} | " + " | ".join(f"{column[i]:.3f}" for column in columns) + " |"
        for i, name in enumerate(names)
    ]
    commits = ", ".join(sorted({f"{row['arm']} S={row['samples']}: {row['commit']}" for row in rows}))
    command = (
        "python -m benchmarks.class_to_class --data ../shared/data --arms {} --samples {} --seeds {}".format(
            *(" ".join(map(str, values)) for values in (options.arms, options.samples, options.seeds))
        )
    )
    about = (
        f"{len(names)} tasks of MetaICL `class_to_class` test, {options.shots} support examples (classes balanced), support "
        f"seeds {', '.join(map(str, options.seeds))}, the first {options.items} test items of each task. No training task "
        "shares its sentences with a test task. Means over tasks of the mean over seeds; ± is the standard error over "
        f"tasks. ECE-15 is per cell of {options.items} items, where a perfectly calibrated model would not score 0 either. "
        f"Settings of both: `{json.dumps(rows[-1]['settings'])}`.\n\nCommand: `{command}`. Commits of the cells: {commits}. "
        f"Machine: {platform.machine()}, torch {torch.__version__}, {options.threads} thread(s)."
    )
    difference = f"Paired difference, {titles[1]} less {titles[0]}: " + "; ".join(paired) + "."
    title = f"# Held-out tasks: {titles[0]} against {titles[1]}"
    parts = [title, about, "\n".join(lines), difference, "## By task", "\n".join(detail)]
    text = "\n\n".join(parts) + "\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".md").write_text(text)
    options.out.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
