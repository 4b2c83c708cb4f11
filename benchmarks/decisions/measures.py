"""How good answers are: accuracy and NLL of those that can be told, and AUROC of those that cannot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from abmll.text.questions import Case, Question
from benchmarks.decisions.arms import Answer

SMALLEST = 1e-6


@dataclass(frozen=True)
class Measured:
    """Over all questions with an answer: `accuracy`, `nll` in nats, and how many there are.

    The AUROCs tell "cannot tell" from the rest: of 1 - answerable, of 1 - typicality and of mutual
    information; nan where an arm does not know it. They are means over questions that have both.
    """

    accuracy: float
    nll: float
    count: int
    answerable: float
    typicality: float
    information: float


def measure(
    questions: Sequence[Question], cases: Sequence[Case], rows: Sequence[Sequence[Answer]]
) -> Measured:
    """Measure answers by input and question."""
    right, losses = [], []
    areas: dict[str, list[float]] = {"answerable": [], "typicality": [], "information": []}
    for number, question in enumerate(questions):
        column = [row[number] for row in rows]
        labels = [case.answers[question.name] for case in cases]
        for label, answer in zip(labels, column, strict=True):
            if label is not None:
                place = question.options.index(label)
                right.append(int(np.argmax(answer.probabilities)) == place)
                losses.append(-math.log(max(SMALLEST, answer.probabilities[place])))
        missing = [label is None for label in labels]
        for name, sign in (("answerable", -1), ("typicality", -1), ("information", 1)):
            values = [getattr(answer, name) for answer in column]
            if any(missing) and not all(missing) and None not in values:
                areas[name].append(float(roc_auc_score(missing, [sign * value for value in values])))
    means = {name: float(np.mean(found)) if found else math.nan for name, found in areas.items()}
    return Measured(float(np.mean(right)), float(np.mean(losses)), len(right), **means)
