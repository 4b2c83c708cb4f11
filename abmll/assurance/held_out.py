"""An adapter's own temperature, from its held-out answers (docs/confidence.md).

Tasks differ in how far a fit to few examples can be trusted, by much more than the number of
examples says. So the posterior's rule for the temperature is the prior here, and the held-out
answers are the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from abmll.assurance.folds import SMALLEST_PROBABILITY, HeldOutAnswer

# Standard deviation, between tasks, of log(T of the task / T of the rule): with fixed classes, and
# for multiple choice, where few answers say little about the next one. The NLL on validation tasks
# by this number is in benchmarks/results/fold_spread.md.
SPREAD, CHOICE_SPREAD = 1.0, 0.25
# Posterior samples that a held-out answer is averaged over.
SAMPLES = 8
# Logarithms of the factor that are tried, in standard deviations: from -3 to 3 in steps of 1/40.
_TRIED = [step / 40 for step in range(-120, 121)]


@dataclass(frozen=True)
class HeldOutSummary:
    """What the held-out answers of an adapter say.

    `n` answers were given, `correct` of them right. `nll` is their mean NLL, in nats, at the
    temperature of the rule. `temperature_factor` times that temperature is the adapter's own.
    """

    n: int
    correct: int
    nll: float
    temperature_factor: float

    @classmethod
    def of(cls, answers: Sequence[HeldOutAnswer], *, multiple_choice: bool = False) -> Self:
        """Summarise at least one answer."""
        return cls(
            len(answers),
            sum(answer.correct for answer in answers),
            math.fsum(answer.nll for answer in answers) / len(answers),
            temperature_factor(answers, CHOICE_SPREAD if multiple_choice else SPREAD),
        )


def temperature_factor(answers: Sequence[HeldOutAnswer], spread: float = SPREAD) -> float:
    """Return the most probable factor on the temperature at which `answers` were given.

    Its logarithm is N(0, spread^2) a priori. A label counts as (n + 1) / (n + 2) of an observation,
    and the other options have the rest in equal parts (after Platt 1999): n right answers do not
    show that there are no wrong ones.
    """
    share = 1 / (len(answers) + 2)
    rows = [_Row.of(answer, share) for answer in answers]

    def loss(deviations: float) -> float:
        power = math.exp(-spread * deviations)
        return math.fsum(row.loss(power) for row in rows) + deviations**2 / 2

    return math.exp(spread * min(_TRIED, key=loss))


@dataclass(frozen=True)
class _Row:
    """Log-probabilities of the options, less the highest one, and their mean under the target."""

    logs: tuple[float, ...]
    expected: float

    @classmethod
    def of(cls, answer: HeldOutAnswer, share: float) -> Self:
        """Read one answer; the options that are not the label have `share` of the target."""
        logs = [math.log(max(p, SMALLEST_PROBABILITY)) for p in answer.probabilities]
        below = tuple(value - max(logs) for value in logs)
        rest = sum(below) - below[answer.label]
        return cls(below, (1 - share) * below[answer.label] + share * rest / (len(below) - 1))

    def loss(self, power: float) -> float:
        """Return the cross-entropy of the target and the normalised options at `power`, in nats."""
        return math.log(math.fsum(math.exp(power * value) for value in self.logs)) - power * self.expected
