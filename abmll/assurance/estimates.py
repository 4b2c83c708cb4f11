"""Estimates from held-out answers: accuracy and likelihood, comparisons, guesses, `answerable`.

Everything here is a pure function of labels and probabilities.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Literal

from scipy.stats import binomtest

from abmll.assurance.folds import HeldOutAnswer
from abmll.text.tasks import CANNOT_TELL, Example

# Level of every interval here.
LEVEL = 0.9

Helped = Literal["yes", "no", "unclear"]


@dataclass(frozen=True)
class Interval:
    """Interval from `low` to `high`."""

    low: float
    high: float


def shared_training(folds: int) -> float:
    """Return the factor on the variance of a mean over the answers of `folds` folds.

    Any two folds share most of their training examples. The factor is 1 + folds n2 / n1, where a
    fold's adapter is fitted to n1 examples and asked for n2 (Nadeau and Bengio 2003, the corrected
    resampled variance). It is about 2, and 1 for a single fold, whose answers come from one
    adapter.
    """
    return 1 + folds / (folds - 1) if folds > 1 else 1.0


def wilson(successes: int, n: int, level: float = LEVEL, *, folds: int = 1, alike: float = 1.0) -> Interval:
    """Return Wilson's score interval of a proportion, `successes` of `n` (at least 1).

    With one fold it is the interval of n independent trials. With more it is that of as many trials
    as have the variance that `shared_training` gives, times `alike`.
    """
    z, trials = NormalDist().inv_cdf((1 + level) / 2), n / shared_training(folds) / alike
    share, spread = successes / n, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    # Exactly 0 and 1 where none or all succeed: rounding must not push the ends beyond them.
    low = 0.0 if successes == 0 else centre - half
    return Interval(low, 1.0 if successes == n else centre + half)


@dataclass(frozen=True)
class Estimate:
    """Accuracy and mean NLL, in nats, on `n` examples.

    `low` and `high` are the accuracy's `wilson` interval; `nll_standard_error` is 0 for one
    example. Both take account of what the answers of several folds share, and of what answers about
    one input do.
    """

    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    nll: float
    nll_standard_error: float

    @classmethod
    def of(
        cls, rows: Sequence[HeldOutAnswer], folds: int = 1, inputs: Sequence[str] | None = None
    ) -> Estimate:
        """Estimate from at least one answer; `folds` is the number of adapters that answered.

        `inputs` has the input of each row, where some are equal.
        """
        n, correct = len(rows), sum(row.correct for row in rows)
        alike = _variance_factor([float(row.correct) for row in rows], inputs)
        interval = wilson(correct, n, folds=folds, alike=alike)
        nll, error = _mean_and_error([row.nll for row in rows], folds, inputs)
        return cls(n, correct, correct / n, interval.low, interval.high, nll, error)


@dataclass(frozen=True)
class Comparison:
    """The adapter compared with something else on the same examples.

    `log_likelihood_gain` is the mean over examples, in nats, with its `standard_error`. `gained`
    examples are answered right by the adapter only, `lost` by the other only. `p_value` is that of
    McNemar's exact test, two-sided, which takes examples as independent. `helped` says whether the
    gain's interval of level `LEVEL` lies above zero ("yes"), below it ("no") or on both sides
    ("unclear").
    """

    helped: Helped
    log_likelihood_gain: float
    standard_error: float
    gained: int
    lost: int
    p_value: float

    @classmethod
    def of(
        cls,
        own: Sequence[HeldOutAnswer],
        other: Sequence[HeldOutAnswer],
        folds: int = 1,
        inputs: Sequence[str] | None = None,
    ) -> Comparison:
        """Compare `own` answers, by the adapters of `folds` folds, with `other` ones.

        `inputs` are as in `Estimate.of`.
        """
        pairs = list(zip(own, other, strict=True))
        gain, error = _mean_and_error([b.nll - a.nll for a, b in pairs], folds, inputs)
        gained = sum(a.correct and not b.correct for a, b in pairs)
        lost = sum(b.correct and not a.correct for a, b in pairs)
        width = NormalDist().inv_cdf((1 + LEVEL) / 2) * error if len(pairs) > 1 else math.inf
        helped: Helped = "yes" if gain > width else "no" if gain < -width else "unclear"
        return cls(helped, gain, error, gained, lost, sign_test(gained, lost))


def sign_test(one: int, other: int) -> float:
    """Return the two-sided p-value of `one` against `other` under a fair coin; 1 where both are 0.

    This is McNemar's exact test.
    """
    return float(binomtest(one, one + other).pvalue) if one + other else 1.0


@dataclass(frozen=True)
class Guess:
    """Best accuracy, and least NLL in nats, of answers that ignore the input."""

    accuracy: float
    nll: float


def best_guess(support: Sequence[Example]) -> Guess:
    """Return what can be reached without the input on examples of one question with options.

    Where all examples share their options it answers by label frequencies, else by equal chances.
    """
    sizes = [len(answers_of(example)) for example in support]
    chance, nll = fmean(1 / size for size in sizes), fmean(map(math.log, sizes))
    if len({frozenset(example.options) for example in support}) > 1:
        return Guess(chance, nll)
    shares = [count / len(support) for count in Counter(example.output for example in support).values()]
    return Guess(max(shares), -math.fsum(share * math.log(share) for share in shares))


def answers_of(example: Example) -> tuple[str, ...]:
    """Return the options of `example` that are answers: without `CANNOT_TELL`, if it is declinable."""
    return tuple(option for option in example.options if option != CANNOT_TELL or not example.declinable)


@dataclass(frozen=True)
class AnswerableEstimate:
    """How well the probability `answerable` knows the inputs that do not tell an answer.

    Of `n` examples, `untellable` have such an input. `auroc` is the probability that an input that
    tells has a higher `answerable` than one that does not, where equal ones count half. `brier` is
    the mean of (`answerable` - 1[the input tells])^2, and `guess_brier` that of the share of inputs
    that tell, in place of `answerable`.
    """

    n: int
    untellable: int
    auroc: float
    brier: float
    guess_brier: float

    @classmethod
    def of(cls, rows: Sequence[HeldOutAnswer]) -> AnswerableEstimate | None:
        """Estimate from answers to declinable examples; None unless there are inputs of both kinds."""
        found = [(row.answerable, row.tellable) for row in rows if row.answerable is not None]
        yes, no = ([value for value, tells in found if tells is kind] for kind in (True, False))
        if not yes or not no:
            return None
        wins = math.fsum((one > other) + (one == other) / 2 for one in yes for other in no)
        brier = fmean((value - tells) ** 2 for value, tells in found)
        share = len(yes) / len(found)
        return cls(len(found), len(no), wins / (len(yes) * len(no)), brier, share * (1 - share))


@dataclass(frozen=True)
class RankedScore:
    """Ranked probability score of answers that are levels; 0 is best, and 1 worst.

    For K levels it is the mean over answers of sum_(k < K) (P(level <= k) - 1[label <= k])^2 /
    (K - 1) (Epstein 1969), so a level beside the right one costs less than one far away. `guess` is
    the same for the label frequencies.
    """

    score: float
    guess: float

    @classmethod
    def of(cls, rows: Sequence[HeldOutAnswer]) -> RankedScore:
        """Score at least one answer, whose probabilities are from the lowest level on."""
        counts = Counter(row.label for row in rows)
        shares = [counts[level] / len(rows) for level in range(len(rows[0].probabilities))]
        return cls(
            fmean(_ranked(row.probabilities, row.label) for row in rows),
            fmean(_ranked(shares, row.label) for row in rows),
        )


def _ranked(probabilities: Sequence[float], label: int) -> float:
    below, total = 0.0, 0.0
    for level, probability in enumerate(probabilities[:-1]):
        below += probability
        total += (below - (label <= level)) ** 2
    return total / (len(probabilities) - 1)


def _mean_and_error(
    values: Sequence[float], folds: int, inputs: Sequence[str] | None = None
) -> tuple[float, float]:
    """Return the mean and its standard error, in which values of equal `inputs` count together."""
    error = stdev(values) * math.sqrt(shared_training(folds) / len(values)) if len(values) > 1 else 0.0
    return fmean(values), error * math.sqrt(_variance_factor(values, inputs))


def _variance_factor(values: Sequence[float], inputs: Sequence[str] | None) -> float:
    """Return the variance of a mean by groups of equal inputs, over that of independent values.

    The first is C / (C - 1) times the sum over the C groups of (the sum of their deviations / n)^2
    (Liang and Zeger 1986). Never below 1: with few groups it is uncertain.
    """
    if inputs is None or len(set(inputs)) < 2:
        return 1.0
    mean, n = fmean(values), len(values)
    sums: dict[str, float] = {}
    for value, text in zip(values, inputs, strict=True):
        sums[text] = sums.get(text, 0.0) + value - mean
    alone = math.fsum((value - mean) ** 2 for value in values) * n / (n - 1)
    grouped = math.fsum(total**2 for total in sums.values()) * len(sums) / (len(sums) - 1)
    return max(1.0, grouped / alone) if alone else 1.0
