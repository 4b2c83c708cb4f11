"""Measure how well the accuracy on held-out examples predicts an adapter's accuracy on test items.

    python -m benchmarks.leave_one_out --data ../shared/data --cells runs/shipped \\
        --method abmll-S16 --tasks TASK... --shots 16

For every task, k and support seed the support is cut into folds. For each fold an adapter is fitted
to the other folds and answers the examples of this one, as in `abmll diagnose`. The accuracy on
test items is that of an evaluation's answers with the same support. Finished estimates are written
to `--work` (JSON Lines): an interrupted run goes on from there, and `benchmarks.fold_spread` reads
them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, spearmanr

from abmll.assurance.estimates import LEVEL, wilson
from abmll.assurance.folds import HeldOutAnswer, make_folds
from abmll.cross_fitting import cross_predict
from abmll.meta.collection import Collection
from abmll.text.tasks import Task
from benchmarks import common
from benchmarks.answers import DIGITS, Answers, confidences
from benchmarks.common import Served
from lab.evaluation.cells import CellResult
from lab.evaluation.protocol import SEEDS, episode

RESAMPLES = 5000
Row = dict[str, Any]
Key = tuple[str, str, int]
KEY = ("posterior", "task", "shots", "seed", "folds", "samples")


def main() -> None:
    parser = common.arguments(__doc__, repeats=1, data=True)
    parser.add_argument("--cells", type=Path, required=True, help="results folder of an evaluation")
    parser.add_argument("--method", required=True, help="whose answers are its test")
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--shots", nargs="+", default=["16"])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS[:1]))
    parser.add_argument("--folds", type=int, default=4, help="at least k leaves one out")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--work", type=Path, default=Path("runs/leave_one_out.jsonl"))
    options = parser.parse_args()
    served = common.load_served(options.posterior, options.threads)
    estimates = collect(served, options)
    results = Answers(options.cells, options.method).cells(options.tasks, options.shots)
    rows = [estimate_row(k, estimates, results) for k in options.shots]
    about = [
        f"Posterior {served.manifest.id}; {options.folds} folds, S = {options.samples}; support seeds "
        f"{', '.join(map(str, options.seeds))}. Test items: those of {options.cells.name}, method {options.method}.",
        f"Spearman's correlation over tasks of means over seeds, its 95 % interval over {RESAMPLES} draws of tasks; and how many "
        f"of the {LEVEL:.0%} intervals of the estimates hold the accuracy on the test items. That is itself an estimate: "
        "`expected` is how many would, were both draws from one accuracy (the two pooled).",
    ]
    head = [
        "k",
        "tasks",
        "rank correlation",
        "interval",
        "folds",
        "test items",
        "coverage",
        "expected",
        "mean width",
    ]
    each = [
        [e["task"], e["shots"], e["seed"], f"{e['correct']}/{e['n']}", float(np.mean(confidences(r)[1]))]
        for e, r in paired(estimates, results)
    ]
    tables = [
        common.table(head, rows),
        "By task:",
        common.table(["task", "k", "seed", "held out right", "accuracy on test items"], each),
    ]
    title = "Accuracy on held-out examples against accuracy on test items"
    common.write_results(
        "leave_one_out", title, about, tables, {"rows": rows, "cells": each}, options, served.dtype
    )


def collect(served: Served, options: argparse.Namespace) -> list[Row]:
    """Return the estimates that `options` name, after computing those that the work file lacks."""
    collection = Collection.open(options.data)
    common.check_unseen(served.manifest, options.tasks, collection)
    done = {tuple(row[name] for name in KEY): row for row in read_estimates(options.work)}
    wanted = []
    for task in collection.read(options.tasks):
        for shots in options.shots:
            for seed in options.seeds:
                key = (served.manifest.digest, task.name, shots, seed, options.folds, options.samples)
                if key not in done:
                    done[key] = {**dict(zip(KEY, key, strict=True)), **run_cell(served, task, key)}
                    options.work.parent.mkdir(parents=True, exist_ok=True)
                    with options.work.open("a") as file:
                        file.write(json.dumps(done[key]) + "\n")
                    print(done[key], flush=True)
                wanted.append(done[key])
    return wanted


def read_estimates(path: Path) -> list[Row]:
    """Return the rows of a work file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_cell(served: Served, task: Task, key: tuple[Any, ...]) -> Row:
    """Answer the held-out examples of one support.

    Return how many answers are right (`correct`), how many there are (`n`), and the answers.
    """
    _, _, shots, seed, folds, samples = key
    support = episode(task, shots, seed, items=1).support
    started = time.perf_counter()
    found = cross_predict(
        served.model, support, make_folds(support, folds), seed=seed, samples=samples, truncate=True
    )
    return {
        "n": len(found),
        "correct": sum(row.correct for row in found),
        "answers": [(row.label, [round(p, DIGITS) for p in row.probabilities]) for row in found],
        "seconds": round(time.perf_counter() - started, 1),
    }


def paired(estimates: Sequence[Row], results: Sequence[CellResult]) -> list[tuple[Row, CellResult]]:
    """Return each estimate with the answers of the same adapter, where both exist."""
    by_cell = {(r.cell.task, r.cell.shots, r.cell.seed): r for r in results}
    keys = [(e["task"], e["shots"], e["seed"]) for e in estimates]
    return [(e, by_cell[k]) for e, k in zip(estimates, keys, strict=True) if k in by_cell and e["n"]]


def by_task(pairs: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Return the mean of the values of each task."""
    values: dict[str, list[float]] = {}
    for task, value in pairs:
        values.setdefault(task, []).append(value)
    return {task: float(np.mean(found)) for task, found in values.items()}


def estimate_row(shots: str, estimates: Sequence[Row], results: Sequence[CellResult]) -> list[Any]:
    """Return the row of one k.

    It has the correlation over tasks and its interval, both mean accuracies, how many intervals
    hold the accuracy on test items, how many should, and the mean width of the intervals.
    """
    pairs = paired([e for e in estimates if e["shots"] == shots], results)
    true = [float(np.mean(confidences(result)[1])) for _, result in pairs]
    own = by_task([(e["task"], e["correct"] / e["n"]) for e, _ in pairs])
    test = by_task([(e["task"], value) for (e, _), value in zip(pairs, true, strict=True)])
    x, y = np.array(list(own.values())), np.array(list(test.values()))

    def rank_correlation(chosen: NDArray[np.int64]) -> float:
        if len(set(x[chosen])) < 2 or len(set(y[chosen])) < 2:
            return float("nan")
        return float(spearmanr(x[chosen], y[chosen]).statistic)

    low, high = resampled(rank_correlation, len(x))
    intervals = [wilson(e["correct"], e["n"], folds=e["folds"]) for e, _ in pairs]
    held = [i.low <= value <= i.high for i, value in zip(intervals, true, strict=True)]
    width = float(np.mean([i.high - i.low for i in intervals]))
    expected = sum(
        chance_to_hold(e["correct"], e["n"], confidences(result)[1], e["folds"]) for e, result in pairs
    )
    return [
        shots, len(x), rank_correlation(np.arange(len(x))), f"[{low:.2f}, {high:.2f}]", float(x.mean()), float(y.mean()),
        f"{sum(held)} of {len(held)}", float(expected), width,
    ]  # fmt: skip


def chance_to_hold(correct: int, n: int, answered: NDArray[np.bool_], folds: int = 1) -> float:
    """Return the probability that the interval of `n` held-out answers holds the test accuracy.

    Held-out answers and test answers (as many as were `answered`) are drawn independently, each
    right at the rate of the two together. This is what a perfect estimate would reach.
    """
    items = len(answered)
    rate = (correct + answered.sum()) / (n + items)
    low, high = np.array([(i.low, i.high) for i in (wilson(c, n, folds=folds) for c in range(n + 1))]).T
    accuracy = np.arange(items + 1) / items
    held = (low[:, None] <= accuracy) & (accuracy <= high[:, None])
    return float(binom.pmf(np.arange(n + 1), n, rate) @ held @ binom.pmf(np.arange(items + 1), items, rate))


def resampled(statistic: Callable[[NDArray[np.int64]], float], tasks: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of a statistic over `RESAMPLES` draws of tasks.

    `statistic` takes the numbers of the drawn tasks. Draws of nan are left out.
    """
    rng = np.random.default_rng(0)
    draws = [statistic(rng.integers(tasks, size=tasks)) for _ in range(RESAMPLES)]
    low, high = np.nanquantile(draws, [0.025, 0.975]) if not np.isnan(draws).all() else (np.nan, np.nan)
    return float(low), float(high)


def held_out(path: Path, posterior: str) -> Mapping[Key, Sequence[HeldOutAnswer]]:
    """Return the held-out answers by task, k and seed, for the posterior with this digest."""
    rows = [row for row in read_estimates(path) if row["posterior"] == posterior and row["n"]]
    return {
        (row["task"], row["shots"], row["seed"]): [
            HeldOutAnswer(i, tuple(probabilities), label)
            for i, (label, probabilities) in enumerate(row["answers"])
        ]
        for row in rows
    }


if __name__ == "__main__":
    main()
