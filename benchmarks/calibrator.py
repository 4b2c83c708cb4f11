"""The calibrator of a posterior: fitted on validation tasks, and tested on others.

    python -m benchmarks.calibrator --posterior ID --data ../shared/data --tasks VALIDATION... --out calibrator.json
    python -m benchmarks.calibrator --posterior ID --data ../shared/data --tasks TEST... --test calibrator.json

Each cell (task, k, seed) adapts, answers test items with S samples, and estimates the adapter on its own support by
K folds. Finished cells are kept in `--work` (JSON Lines), so an interrupted run goes on. The first form fits and writes the
calibrator; the second writes benchmarks/results/calibrator.md: Brier score and ECE of the raw and the calibrated confidence, and
how well the folds predict the accuracy on test items.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from abmll.calibrator import FEATURES, Calibrator, Shown, features
from abmll.crossfit import cross_predict
from abmll.diagnostics import LEVEL, wilson
from abmll.evaluation.calibration import Items, confidence_falls, fit_calibrator
from abmll.evaluation.metrics import expected_calibration_error
from abmll.evaluation.protocol import SEEDS, check_unseen, episode
from abmll.evaluation.records import Floats
from abmll.folds import make_folds
from abmll.meta.collection import Collection
from abmll.tasks import Task
from benchmarks.common import Served, commit, load_served, table, write_results

KNOWN, UNKNOWN = FEATURES.index("held_out_logit"), FEATURES.index("held_out_unknown")
ARMS = ("raw", "calibrated", "calibrated, folds known")
RESAMPLES = 5000
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--posterior", default=None, help="id or folder; by default the shipped one")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--shots", nargs="+", type=int, default=[4, 8, 16, 32])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS[:2]))
    parser.add_argument("--items", type=int, default=40, help="most test items of a cell")
    parser.add_argument(
        "--folds", type=int, default=4, help="folds of the support; at least k leaves one out"
    )
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/calibrator.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("runs/calibrator.json"), help="the calibrator made")
    parser.add_argument("--test", type=Path, help="test this calibrator instead of fitting one")
    parser.add_argument("--quick", action="store_true", help="write the test's results to runs/quick")
    options = parser.parse_args()
    options.repeats, options.seed = 1, options.seeds[0]
    served = load_served(options.posterior, options.threads)
    rows = collect(served, options)
    if options.test is None:
        calibrator = fit(rows, served.manifest.digest, options)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(calibrator.to_json(), indent=1) + "\n")
        print(describe(calibrator))
        print(f"{calibrator.id} written to {options.out}")
    else:
        report(rows, Calibrator.from_json(json.loads(options.test.read_text())), served, options)


# ---- cells ----------------------------------------------------------------------------------------------------------


def collect(served: Served, options: argparse.Namespace) -> list[Row]:
    """The rows of all cells that `options` name, after computing those that the work file lacks."""
    collection = Collection.open(options.data)
    trained_on = {row["task"] for row in served.manifest.training["data"]}
    check_unseen(served.manifest.id, trained_on, options.tasks, collection.about)
    options.work.parent.mkdir(parents=True, exist_ok=True)
    kept = (
        [json.loads(line) for line in options.work.read_text().splitlines()] if options.work.exists() else []
    )
    done = {key_of(row): row for row in kept}
    wanted = []
    for task in collection.read(options.tasks):
        for shots in options.shots:
            for seed in options.seeds:
                about = {
                    "posterior": served.manifest.digest, "task": task.name, "shots": shots, "seed": seed,
                    "items": options.items, "folds": options.folds, "samples": options.samples,
                }  # fmt: skip
                if key_of(about) not in done:
                    done[key_of(about)] = row = {**about, **run_cell(served, task, about), "commit": commit()}
                    with options.work.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(told(row), flush=True)
                wanted.append(done[key_of(about)])
    return wanted


def key_of(row: Row) -> tuple[Any, ...]:
    """What a cell's answers depend on."""
    return tuple(row[name] for name in ("posterior", "task", "shots", "seed", "items", "folds", "samples"))


def run_cell(served: Served, task: Task, about: Row) -> Row:
    """Item by item the features (without the folds' estimate) and whether the answer was right; and the folds' count."""
    model, seed, samples = served.model, about["seed"], about["samples"]
    data = episode(task, str(about["shots"]), seed, items=about["items"])
    started = time.perf_counter()
    posterior = model.adapt(data.support, seed=seed, truncate=True).posterior
    found = model.predict(posterior, data.queries, samples=samples, seed=seed, truncate=True)
    answered = time.perf_counter()
    folds = make_folds(data.support, about["folds"])
    held_out = cross_predict(model, data.support, folds, seed=seed, samples=samples, truncate=True)
    size = len(data.support)
    return {
        "support": size,
        "held_out_n": len(held_out),
        "held_out_correct": sum(row.correct for row in held_out),
        "features": [[round(x, 6) for x in features(f.predictive, size, None)] for f in found],
        "confidence": [round(f.predictive.confidence, 6) for f in found],
        "correct": [int(f.predictive.top == label) for f, label in zip(found, data.labels, strict=True)],
        "predict_seconds": round(answered - started, 2),
        "folds_seconds": round(time.perf_counter() - answered, 2),
    }


def told(row: Row) -> str:
    """One line for whoever waits."""
    held_out = f"{row['held_out_correct']}/{row['held_out_n']}"
    seconds = row["predict_seconds"] + row["folds_seconds"]
    accuracy = np.mean(row["correct"])
    return f"{row['task']} k={row['shots']} seed {row['seed']}: {accuracy:.3f}, held out {held_out}, {seconds:.0f} s"


def feature_matrix(row: Row, *, folds_known: bool) -> Floats:
    """A cell's features [n, len(FEATURES)], with the folds' estimate where it is known and wanted."""
    matrix: Floats = np.array(row["features"])
    if folds_known and row["held_out_n"]:
        shown = Shown(row["held_out_correct"], row["held_out_n"])
        matrix[:, KNOWN] = np.log((shown.correct + 0.5) / (shown.n - shown.correct + 0.5))
        matrix[:, UNKNOWN] = 0.0
    return matrix


# ---- fitting --------------------------------------------------------------------------------------------------------


def fit(rows: Sequence[Row], digest: str, options: argparse.Namespace) -> Calibrator:
    items = Items(
        np.concatenate([feature_matrix(row, folds_known=True) for row in rows]),
        np.concatenate([row["correct"] for row in rows]),
        np.concatenate([[row["task"]] * len(row["correct"]) for row in rows]),
    )
    about = {
        "shots": options.shots,
        "seeds": options.seeds,
        "folds": options.folds,
        "samples": options.samples,
    }
    return fit_calibrator(items, digest, options.samples, about)


def describe(calibrator: Calibrator) -> str:
    """Coefficients, and whether confidence ever falls where the top probability rises."""
    lines = [f"{name:>20} {value:+.4f}" for name, value in calibrator.coefficients.items()]
    falls = [str(n) for n in (2, 3, 4, 8, 16) if confidence_falls(calibrator, n)]
    sane = f"falls somewhere with {', '.join(falls)} options" if falls else "never falls"
    lines += [
        f"{'intercept':>20} {calibrator.intercept:+.4f}",
        f"As the top probability rises, confidence {sane}.",
    ]
    return "\n".join(lines)


# ---- testing --------------------------------------------------------------------------------------------------------


def confidences(row: Row, calibrator: Calibrator, arm: str) -> Floats:
    """One arm's confidence in each answer of a cell."""
    if arm == "raw":
        return np.array(row["confidence"])
    matrix = feature_matrix(row, folds_known=arm.endswith("known"))
    return np.array([calibrator.evaluate(tuple(values)) for values in matrix])


def report(rows: Sequence[Row], calibrator: Calibrator, served: Served, options: argparse.Namespace) -> None:
    if calibrator.posterior_digest != served.manifest.digest:
        raise SystemExit("the calibrator is of another posterior")
    shared = sorted(set(options.tasks) & set(calibrator.fitted["tasks"]))
    if shared:
        raise SystemExit(f"the calibrator was fitted on {', '.join(shared)}: they cannot test it")
    scores = [row for shots in options.shots for row in score_rows(rows, shots, calibrator)]
    estimates = [estimate_row(rows, shots) for shots in options.shots]
    about = [
        f"Calibrator {calibrator.id} of {served.manifest.id}, fitted on {', '.join(calibrator.fitted['tasks'])}; tested on "
        f"{len(options.tasks)} other tasks: {', '.join(options.tasks)}. Support seeds {', '.join(map(str, options.seeds))}, "
        f"the first {options.items} test items, S = {options.samples}.",
        "Brier: mean (confidence - correct)^2, the mean over tasks. ECE: 15 bins, over the items of all tasks. Differences are "
        f"calibrated less raw, with 95 % percentile intervals over {RESAMPLES} draws of tasks. `folds known`: the "
        f"calibrator was told the adapter's own estimate from {options.folds} folds.",
        f"```\n{describe(calibrator)}\n```",
    ]
    tables = [
        table(
            ["k", "confidence", "accuracy", "mean", "Brier", "difference", "ECE-15", "difference "], scores
        ),
        "How well the folds' accuracy predicts that on the test items: Spearman's correlation over tasks (means over "
        f"seeds; 95 % interval over draws of tasks), and how many of the cells' {LEVEL:.0%} intervals hold the accuracy on "
        "the test items, which is itself an estimate.",
        table(
            ["k", "rank correlation", "interval", "folds", "test items", "coverage", "mean width"], estimates
        ),
    ]
    data = {"scores": scores, "estimates": estimates, "calibrator": calibrator.to_json()}
    write_results("calibrator", "Calibrated confidence", about, tables, data, options, served.dtype)


def by_task(rows: Sequence[Row], shots: int) -> dict[str, list[Row]]:
    """The cells of one k."""
    cells: dict[str, list[Row]] = {}
    for row in rows:
        if row["shots"] == shots:
            cells.setdefault(row["task"], []).append(row)
    return cells


def score_rows(rows: Sequence[Row], shots: int, calibrator: Calibrator) -> list[list[Any]]:
    """One table row an arm."""
    tasks = list(by_task(rows, shots).values())
    correct = [np.concatenate([row["correct"] for row in cells]).astype(float) for cells in tasks]
    sure = {
        arm: [np.concatenate([confidences(row, calibrator, arm) for row in cells]) for cells in tasks]
        for arm in ARMS
    }

    def brier(arm: str, chosen: NDArray[np.int64]) -> float:
        return float(np.mean([((sure[arm][i] - correct[i]) ** 2).mean() for i in chosen]))

    def ece(arm: str, chosen: NDArray[np.int64]) -> float:
        return expected_calibration_error(
            np.concatenate([sure[arm][i] for i in chosen]), np.concatenate([correct[i] for i in chosen])
        )

    everyone = np.arange(len(tasks))
    found = []
    for arm in ARMS:
        means = [np.mean([values.mean() for values in of]) for of in (correct, sure[arm])]
        row = [shots, arm, *map(float, means)]
        for metric in (brier, ece):
            row += [metric(arm, everyone), "" if arm == "raw" else paired(metric, arm, everyone)]
        found.append(row)
    return found


def paired(metric: Callable[[str, NDArray[np.int64]], float], arm: str, everyone: NDArray[np.int64]) -> str:
    """The difference to the raw confidence, and its interval over draws of tasks."""

    def difference(chosen: NDArray[np.int64]) -> float:
        return metric(arm, chosen) - metric("raw", chosen)

    low, high = resampled(difference, len(everyone))
    return f"{difference(everyone):+.4f} [{low:+.4f}, {high:+.4f}]"


def resampled(statistic: Callable[[NDArray[np.int64]], float], tasks: int) -> tuple[float, float]:
    """95 % percentile interval of a statistic of tasks, given by their numbers; nan draws are left out."""
    rng = np.random.default_rng(0)
    draws = [statistic(rng.integers(tasks, size=tasks)) for _ in range(RESAMPLES)]
    low, high = np.nanquantile(draws, [0.025, 0.975]) if not np.isnan(draws).all() else (np.nan, np.nan)
    return float(low), float(high)


def estimate_row(rows: Sequence[Row], shots: int) -> list[Any]:
    """How the folds' estimate compares with the test items at one k."""
    cells = [row for row in rows if row["shots"] == shots and row["held_out_n"]]
    own = {
        task: np.mean([row["held_out_correct"] / row["held_out_n"] for row in of])
        for task, of in by_task(cells, shots).items()
    }
    true = {
        task: np.mean([np.mean(row["correct"]) for row in of]) for task, of in by_task(cells, shots).items()
    }
    x, y = np.array(list(own.values())), np.array(list(true.values()))

    def rank_correlation(chosen: NDArray[np.int64]) -> float:
        if len(set(x[chosen])) < 2 or len(set(y[chosen])) < 2:
            return float("nan")
        return float(spearmanr(x[chosen], y[chosen]).statistic)

    low, high = resampled(rank_correlation, len(x))
    intervals = [wilson(row["held_out_correct"], row["held_out_n"]) for row in cells]
    held = [
        interval.low <= np.mean(row["correct"]) <= interval.high
        for interval, row in zip(intervals, cells, strict=True)
    ]
    width = float(np.mean([interval.high - interval.low for interval in intervals]))
    return [
        shots, rank_correlation(np.arange(len(x))), f"[{low:.2f}, {high:.2f}]", float(x.mean()), float(y.mean()),
        f"{sum(held)} of {len(held)}", width,
    ]  # fmt: skip


if __name__ == "__main__":
    main()
