"""One adapter's own temperature, from how adapters fitted without some of its examples answer those (docs/confidence.md).

Tasks differ in how far a fit to few examples can be trusted, by much more than the number of examples tells. The temperature
rule of the posterior is the prior here, and the held-out answers are the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from abmll.assurance.folds import SMALLEST_PROBABILITY, HeldOutAnswer

# Standard deviation between tasks of log(T of the task / T of the rule), with fixed classes and for multiple choice, where a few
# answers say little of the next. benchmarks/results/fold_spread.md has the NLL on validation tasks by it.
SPREAD, CHOICE_SPREAD = 1.0, 0.25
# Posterior samples of each held-out answer.
SAMPLES = 8
# Values of the logarithm that are tried, in standard deviations: steps of 1/40 up to three.
_TRIED = [step / 40 for step in range(-120, 121)]


@dataclass(frozen=True)
class HeldOutSummary:
    """Answers to support examples of adapters fitted without them: `n`, how many were right, their mean NLL in nats at the
    temperature of the rule, and by what the adapter's own temperature is more than that.
    """

    n: int
    correct: int
    nll: float
    temperature_factor: float

    @classmethod
    def of(cls, answers: Sequence[HeldOutAnswer], *, multiple_choice: bool = False) -> Self:
        """From at least one answer."""
        return cls(
            len(answers),
            sum(answer.correct for answer in answers),
            math.fsum(answer.nll for answer in answers) / len(answers),
            temperature_factor(answers, CHOICE_SPREAD if multiple_choice else SPREAD),
        )


def temperature_factor(answers: Sequence[HeldOutAnswer], spread: float = SPREAD) -> float:
    """The most probable factor on the temperature of `answers`, given them; its logarithm is N(0, spread^2) a priori.

    A label counts as (n + 1) / (n + 2) of an observation, and the other options share the rest, as one that could come next
    (after Platt 1999): n right answers do not show that there are no wrong ones.
    """
    share = 1 / (len(answers) + 2)
    rows = [_Row.of(answer, share) for answer in answers]

    def loss(deviations: float) -> float:
        power = math.exp(-spread * deviations)
        return math.fsum(row.loss(power) for row in rows) + deviations**2 / 2

    return math.exp(spread * min(_TRIED, key=loss))


@dataclass(frozen=True)
class _Row:
    """Log-probabilities of an answer's options, and the mean of their differences to the highest one under the target."""

    logs: tuple[float, ...]
    expected: float

    @classmethod
    def of(cls, answer: HeldOutAnswer, share: float) -> Self:
        """`share` of the target is on the options that are not the label."""
        logs = [math.log(max(p, SMALLEST_PROBABILITY)) for p in answer.probabilities]
        below = tuple(value - max(logs) for value in logs)
        rest = sum(below) - below[answer.label]
        return cls(below, (1 - share) * below[answer.label] + share * rest / (len(below) - 1))

    def loss(self, power: float) -> float:
        """Cross-entropy, in nats, of the target and the options' probabilities to the `power`, normalised."""
        return math.log(math.fsum(math.exp(power * value) for value in self.logs)) - power * self.expected
