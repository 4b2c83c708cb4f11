"""How good answers are: accuracy and NLL where the input tells them, AUROC of "cannot tell"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from abmll.text.questions import Question
from benchmarks.decisions.arms import Answer

SMALLEST = 1e-6
# What speaks for "cannot tell", and whether by low (-1) or high values.
SIGNALS = {"answerable": -1, "typicality": -1, "information": 1}


@dataclass(frozen=True)
class Measured:
    """The answers to one question.

    `accuracy` and `nll` (nats) are over the `count` inputs that tell the answer. The AUROCs tell
    the others from these: of 1 - answerable, of 1 - typicality and of mutual information. A number
    is nan where the arm does not know it, or the inputs are all of one kind.
    """

    accuracy: float
    nll: float
    count: int
    answerable: float
    typicality: float
    information: float


def measure(question: Question, labels: Sequence[str | None], answers: Sequence[Answer]) -> Measured:
    """Measure the answers to a question; a label of None is "cannot tell"."""
    right, losses = [], []
    for label, answer in zip(labels, answers, strict=True):
        if label is not None:
            place = question.options.index(label)
            right.append(int(np.argmax(answer.probabilities)) == place)
            losses.append(-math.log(max(SMALLEST, answer.probabilities[place])))
    missing = [label is None for label in labels]
    areas = dict.fromkeys(SIGNALS, math.nan)
    for name, sign in SIGNALS.items():
        values = [getattr(answer, name) for answer in answers]
        if any(missing) and not all(missing) and None not in values:
            areas[name] = float(roc_auc_score(missing, [sign * value for value in values]))
    mean = (float(np.mean(right)), float(np.mean(losses))) if right else (math.nan, math.nan)
    return Measured(*mean, len(right), **areas)
