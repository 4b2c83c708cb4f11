"""Simulate certified gates: how often is a certificate wrong, and how much coverage does it cost?

    python -m benchmarks.certified_gates
    python -m benchmarks.certified_gates --cells benchmarks/results/shipped/abmll-S16.json.gz \\
        --method abmll-S16

A task is a population of (confidence, correct) pairs: the toy below, or the answers of an
evaluation. Calibration sets are drawn from it with replacement, so the truth is known. Each draw of
n labels gives two thresholds. One is that of the certificate at the target error. The other is the
naive threshold: the loosest whose error on the same labels is within the target. A threshold is a
violation if the true error above it exceeds the target.

The toy has confidences from Beta(3.4, 1.6), and an answer is right with the probability that its
confidence says. Its accuracy is 68 %, and its error is 10 % at a coverage of .26.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, binomtest

from abmll.assurance.certificates import Certificate, certify, certify_looks, coverage_cuts
from benchmarks import common
from benchmarks.answers import Answers, confidences
from lab.evaluation.cells import CellResult

TOY = (3.4, 1.6)
METHODS = ("naive", "certified", "certified, looked at 4 times")
# Sizes of successive looks, as parts of n.
LOOK_PARTS = (0.296, 0.444, 0.667, 1.0)


@dataclass(frozen=True)
class Toy:
    """Task of Beta confidences, which are the true probabilities of being right."""

    name: str = "toy"

    def draw(self, rng: np.random.Generator, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
        confidence = rng.beta(*TOY, n)
        return confidence, rng.random(n) < confidence

    def above(self, threshold: float) -> tuple[float, float]:
        """Return coverage and error of the answers with confidence >= threshold."""
        a, b = TOY
        coverage = float(beta.sf(threshold, a, b))
        if coverage == 0:
            return 0.0, 0.0
        return coverage, 1 - a / (a + b) * float(beta.sf(threshold, a + 1, b)) / coverage

    def oracle(self, target: float) -> float:
        """Return the largest coverage whose error is within the target."""
        found = [c for c, e in map(self.above, np.linspace(0, 1, 2001)) if e <= target]
        return max(found, default=0.0)


class Records:
    """Task whose population is the evaluated items."""

    def __init__(self, name: str, confidence: ArrayLike, correct: ArrayLike) -> None:
        self.name = name
        order = np.argsort(confidence)
        self._confidence = np.asarray(confidence, float)[order]
        self._correct = np.asarray(correct, bool)[order]
        self._wrong_from = np.append(np.cumsum(~self._correct[::-1])[::-1], 0)

    @classmethod
    def of(cls, name: str, cells: Sequence[CellResult]) -> Self:
        """Take the items of all `cells` of the task, one for each support seed."""
        confidence, correct = zip(*map(confidences, cells), strict=True)
        return cls(name, np.concatenate(confidence), np.concatenate(correct))

    def draw(self, rng: np.random.Generator, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
        drawn = rng.integers(len(self._confidence), size=n)
        return self._confidence[drawn], self._correct[drawn]

    def above(self, threshold: float) -> tuple[float, float]:
        first = int(np.searchsorted(self._confidence, threshold))
        accepted = len(self._confidence) - first
        return accepted / len(self._confidence), float(self._wrong_from[first] / max(1, accepted))

    def oracle(self, target: float) -> float:
        return max((c for c, e in map(self.above, self._confidence) if e <= target), default=0.0)


def naive_threshold(confidence: NDArray[Any], correct: NDArray[Any], target: float) -> float | None:
    """Return the loosest threshold whose error on the labels is within the target, if any."""
    order = np.argsort(-confidence)
    errors = np.cumsum(~correct[order]) / np.arange(1, len(order) + 1)
    # A threshold takes answers of equal confidence together.
    last = np.append(confidence[order][1:] < confidence[order][:-1], True)
    fine = np.flatnonzero((errors <= target) & last)
    return float(confidence[order][fine[-1]]) if len(fine) else None


def thresholds(
    confidence: NDArray[Any], correct: NDArray[Any], target: float, delta: float
) -> dict[str, list[float]]:
    """Return for each method the thresholds that it would have served: none, one, or one a look."""
    naive = naive_threshold(confidence, correct, target)
    cuts = coverage_cuts(confidence, target, delta)
    once = certify(confidence, correct, target, delta, cuts)
    sizes = [round(part * len(confidence)) for part in LOOK_PARTS]
    looked = [certify_looks(confidence[:n], correct[:n], target, delta, sizes[0]) for n in sizes]
    return {
        "naive": [] if naive is None else [naive],
        "certified": [once.threshold] if isinstance(once, Certificate) else [],
        "certified, looked at 4 times": [c.threshold for c in looked if isinstance(c, Certificate)],
    }


def simulate(
    task: Toy | Records, n: int, target: float, delta: float, draws: int, seed: int
) -> dict[str, dict[str, float]]:
    """Return the results of each method over `draws` calibration sets of n labels.

    These are the number of violations, the number of draws that gave a threshold, and the mean
    coverage of the last threshold of a draw (0 without one).
    """
    rng = np.random.default_rng([seed, n])
    found = {name: {"violations": 0.0, "served": 0.0, "coverage": 0.0} for name in METHODS}
    for _ in range(draws):
        for name, served in thresholds(*task.draw(rng, n), target, delta).items():
            truth = [task.above(threshold) for threshold in served]
            found[name]["violations"] += any(error > target for _, error in truth)
            found[name]["served"] += bool(served)
            found[name]["coverage"] += truth[-1][0] / draws if truth else 0.0
    return found


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument(
        "--cells",
        type=Path,
        help="results folder of an evaluation, or a file made of one (`benchmarks.answers`)",
    )
    parser.add_argument("--method", help="whose answers")
    parser.add_argument("--shots", nargs="+", default=["16"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 200, 500, 1000])
    parser.add_argument("--targets", nargs="+", type=float, default=[0.05, 0.1, 0.2])
    parser.add_argument("--delta", type=float, default=0.1)
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.targets, options.draws = [100], [0.1], 50
    tasks: list[Toy | Records] = [Toy()]
    name = "certified_gates"
    if options.cells:
        cells = Answers(options.cells, options.method).cells([], options.shots)
        names = sorted({cell.cell.task for cell in cells})
        tasks = [Records.of(name, [cell for cell in cells if cell.cell.task == name]) for name in names]
        name = "certified_gates_records"
    rows, data = [], []
    for target in options.targets:
        oracle = float(np.mean([task.oracle(target) for task in tasks]))
        for n in options.sizes:
            runs = [
                simulate(task, n, target, options.delta, options.draws, options.seed + i)
                for i, task in enumerate(tasks)
            ]
            total = options.draws * len(tasks)
            for method in METHODS:
                wrong = int(sum(run[method]["violations"] for run in runs))
                interval = binomtest(wrong, total).proportion_ci(0.95, method="exact")
                worst = max(run[method]["violations"] / options.draws for run in runs)
                served = sum(run[method]["served"] for run in runs) / total
                coverage = float(np.mean([run[method]["coverage"] for run in runs]))
                rate = f"{wrong / total:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
                rows.append(
                    [
                        target,
                        n,
                        method,
                        rate,
                        f"{worst:.3f}",
                        f"{served:.2f}",
                        f"{coverage:.3f}",
                        f"{oracle:.3f}",
                    ]
                )
                data.append(
                    {
                        "target_error": target, "n": n, "method": method, "violations": wrong, "draws": total,
                        "worst_task": worst, "served": served, "coverage": coverage, "oracle_coverage": oracle,
                    }
                )  # fmt: skip
            print(rows[-2], flush=True)
    head = [
        "target error",
        "labels",
        "threshold",
        "violated [95 %]",
        "worst task",
        "served",
        "coverage",
        "oracle",
    ]
    about = [
        f"{options.draws} calibration draws a task and row, tasks: {', '.join(task.name for task in tasks)}. A certificate "
        f"may be violated in at most {options.delta:g} of the draws. `looked at 4 times`: at 30, 44, 67 and 100 % of the "
        "labels, counted as violated if any of the thresholds served meanwhile is. `served`: proportion of draws that give "
        "a threshold; coverage is 0 in the others. `oracle`: the largest coverage within the target."
    ]
    common.write_results(
        name,
        "Certified gates against the tuned threshold",
        about,
        [common.table(head, rows)],
        {"delta": options.delta, "rows": data},
        options,
    )


if __name__ == "__main__":
    main()
