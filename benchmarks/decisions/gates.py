"""What a certified gate accepts of the answers of one adapter, by what it takes as confidence.

An answer to a question that the input does not answer is wrong, whatever it is. The tested cases of
a cell are divided at random, many times: labels of one half certify a threshold, and the other half
says what it accepts. The answers of one adapter are pooled over its questions. Answers about one
input are not independent, which the certificate takes them for: so its error is measured too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from abmll.assurance.certificates import Certificate, certify, coverage_cuts
from benchmarks.decisions.arms import Answer
from benchmarks.decisions.cells import Cell
from benchmarks.decisions.collections import Decisions

DELTA, HALVINGS = 0.1, 40


def _confidence(answer: Answer) -> float:
    return max(answer.probabilities)


# What is high where an answer can be relied on, and lies between 0 and 1.
SCORES: dict[str, Callable[[Answer], float]] = {
    "confidence": _confidence,
    "confidence x answerable": lambda answer: _confidence(answer) * _known(answer.answerable),
    "typicality": lambda answer: _known(answer.typicality),
    "mutual information": lambda answer: math.exp(-_known(answer.information)),
}


def _known(value: float | None) -> float:
    return math.nan if value is None else value


@dataclass(frozen=True)
class Outcomes:
    """The answers of a cell, [cases, questions]: `score`, `right`, and `tellable` by the input."""

    score: NDArray[np.float64]
    right: NDArray[np.bool_]
    tellable: NDArray[np.bool_]

    @classmethod
    def of(cls, cell: Cell, decisions: Decisions, score: Callable[[Answer], float]) -> Outcomes:
        """Read the outcomes of a cell by one score."""
        _, tested = decisions.split(cell.key.labelled, cell.key.tested, cell.key.seed)
        right, tellable = [], []
        for case, row in zip(tested, cell.answers.rows, strict=True):
            labels = [case.answers[question.name] for question in decisions.questions]
            tellable.append([label is not None for label in labels])
            right.append([
                label == question.options[int(np.argmax(answer.probabilities))]
                for label, question, answer in zip(labels, decisions.questions, row, strict=True)
            ])  # fmt: skip
        scores = [[score(answer) for answer in row] for row in cell.answers.rows]
        return cls(np.array(scores), np.array(right), np.array(tellable))


@dataclass(frozen=True)
class Gated:
    """Means over divisions: how often a threshold was `certified`, and what it accepted.

    `coverage` is the proportion of answers accepted, 0 where nothing was certified. `error` is the
    proportion wrong of all that was accepted, and `untellable` that of inputs that do not tell; nan
    where nothing was. `possible` is the coverage of the best threshold, which only labels of the
    second half know.
    """

    certified: float
    coverage: float
    error: float
    untellable: float
    possible: float


def gated(outcomes: Iterable[Outcomes], target: float, seed: int = 0) -> Gated:
    """Certify and apply a gate of error `target` on divisions of each cell's cases."""
    rng = np.random.default_rng(seed)
    certified, coverage, possible = [], [], []
    accepted = wrong = untellable = 0
    for found in outcomes:
        for _ in range(HALVINGS):
            order = rng.permutation(len(found.score))
            first, second = np.array_split(order, 2)
            threshold = _certified(found.score[first].ravel(), found.right[first].ravel(), target)
            passes = found.score[second] >= (math.inf if threshold is None else threshold)
            certified.append(threshold is not None)
            coverage.append(float(passes.mean()))
            possible.append(_possible(found.score[second].ravel(), found.right[second].ravel(), target))
            accepted += int(passes.sum())
            wrong += int((passes & ~found.right[second]).sum())
            untellable += int((passes & ~found.tellable[second]).sum())
    if not certified:
        return Gated(math.nan, math.nan, math.nan, math.nan, math.nan)
    parts = (wrong / accepted, untellable / accepted) if accepted else (math.nan, math.nan)
    return Gated(float(np.mean(certified)), float(np.mean(coverage)), *parts, float(np.mean(possible)))


def _certified(score: NDArray[np.float64], right: NDArray[np.bool_], target: float) -> float | None:
    found = certify(score, right, target, DELTA, coverage_cuts(score, target, DELTA))
    return found.threshold if isinstance(found, Certificate) else None


def _possible(score: NDArray[np.float64], right: NDArray[np.bool_], target: float) -> float:
    order = np.argsort(-score)
    errors = np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
    last = np.append(np.diff(score[order]) < 0, True)  # a threshold takes ties together
    fine = np.flatnonzero((errors <= target) & last)
    return float(fine[-1] + 1) / len(order) if len(fine) else 0.0


def all_outcomes(
    cells: Sequence[Cell], collections: Mapping[str, Decisions], score: Callable[[Answer], float]
) -> list[Outcomes]:
    """Return the outcomes of cells whose arm knows the score."""
    found = [Outcomes.of(cell, collections[cell.key.collection], score) for cell in cells]
    return [one for one in found if not np.isnan(one.score).any()]
