"""Diagnosis of an adapter from held-out answers: estimates, comparisons, suspects, a verdict.

Everything here is a pure function of labels and probabilities; no model is needed.
docs/confidence.md explains the parts of a diagnosis.
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
from abmll.posterior.movement import Movement
from abmll.text.tasks import Example

# Level of every interval here.
LEVEL = 0.9
# A held-out answer of at least this probability that is not the label makes the label suspect.
SURE = 0.8
# An interval wider than this says too little. Up to eight examples can have one.
WIDE = 0.6

Verdict = Literal["healthy", "weak", "unfit"]
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


def wilson(successes: int, n: int, level: float = LEVEL, *, folds: int = 1) -> Interval:
    """Return Wilson's score interval of a proportion, `successes` of `n` (at least 1).

    With one fold it is the interval of n independent trials. With more it is that of as many trials
    as have the variance that `shared_training` gives.
    """
    z, trials = NormalDist().inv_cdf((1 + level) / 2), n / shared_training(folds)
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
    example. Both take account of what the answers of several folds share.
    """

    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    nll: float
    nll_standard_error: float

    @classmethod
    def of(cls, rows: Sequence[HeldOutAnswer], folds: int = 1) -> Estimate:
        """Estimate from at least one answer; `folds` is the number of adapters that answered."""
        n, correct = len(rows), sum(row.correct for row in rows)
        interval = wilson(correct, n, folds=folds)
        nll, error = _mean_and_error([row.nll for row in rows], folds)
        return cls(n, correct, correct / n, interval.low, interval.high, nll, error)


@dataclass(frozen=True)
class Comparison:
    """The adapter compared with something else on the same examples.

    `log_likelihood_gain` is the mean over examples, in nats, with its `standard_error`. `gained`
    examples are answered right by the adapter only, `lost` by the other only. `p_value` is that of
    McNemar's exact test, two-sided. `helped` says whether the gain's interval of level `LEVEL` lies
    above zero ("yes"), below it ("no") or on both sides ("unclear").
    """

    helped: Helped
    log_likelihood_gain: float
    standard_error: float
    gained: int
    lost: int
    p_value: float

    @classmethod
    def of(cls, own: Sequence[HeldOutAnswer], other: Sequence[HeldOutAnswer], folds: int = 1) -> Comparison:
        """Compare `own` answers, by the adapters of `folds` folds, with `other` ones."""
        pairs = list(zip(own, other, strict=True))
        gain, error = _mean_and_error([b.nll - a.nll for a, b in pairs], folds)
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
class Suspect:
    """Support example, by its position, whose held-out answer differs from its label.

    `probability` is that of the answer.
    """

    index: int
    label: str
    answer: str
    probability: float


@dataclass(frozen=True)
class Conflict:
    """Positions of support examples with the same input, and their different labels.

    Labels are in the order of the positions.
    """

    indices: tuple[int, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Guess:
    """Best accuracy, and least NLL in nats, of answers that ignore the input."""

    accuracy: float
    nll: float


@dataclass(frozen=True)
class Reason:
    """Reason for a verdict: a stable code and a sentence."""

    code: str
    message: str


@dataclass(frozen=True)
class Diagnosis:
    """What the support of an adapter says about it.

    `held_out`, `prior` and `in_context` are on the same examples. `prior` is the mean of the global
    posterior. `in_context` is the same with the examples of the other folds as demonstrations, as
    many as fit. `asked_folds` is what the caller asked for (None: the default), `folds` what there
    was.
    """

    asked_folds: int | None
    folds: int
    samples: int
    held_out: Estimate
    prior: Estimate
    in_context: Estimate
    over_prior: Comparison
    over_in_context: Comparison
    movement: Movement
    guess: Guess
    suspects: tuple[Suspect, ...]
    conflicts: tuple[Conflict, ...]
    unseen_options: tuple[str, ...]
    verdict: Verdict
    reasons: tuple[Reason, ...]
    level: float = LEVEL


def diagnose(
    support: Sequence[Example],
    held_out: Sequence[HeldOutAnswer],
    prior: Sequence[HeldOutAnswer],
    in_context: Sequence[HeldOutAnswer],
    movement: Movement,
    *,
    asked_folds: int | None,
    folds: int,
    samples: int,
) -> Diagnosis:
    """Diagnose an adapter from three sets of answers to the same examples of its `support`."""
    own = Estimate.of(held_out, folds)
    over_prior, over_in_context = (Comparison.of(held_out, other, folds) for other in (prior, in_context))
    guess = best_guess(support)
    verdict, reasons = judge(own, guess, over_prior, over_in_context)
    return Diagnosis(
        asked_folds=asked_folds,
        folds=folds,
        samples=samples,
        held_out=own,
        prior=Estimate.of(prior),
        in_context=Estimate.of(in_context, folds),
        over_prior=over_prior,
        over_in_context=over_in_context,
        movement=movement,
        guess=guess,
        suspects=suspects(support, held_out),
        conflicts=conflicts(support),
        unseen_options=unseen_options(support),
        verdict=verdict,
        reasons=reasons,
    )


def judge(
    own: Estimate, guess: Guess, over_prior: Comparison, over_in_context: Comparison
) -> tuple[Verdict, tuple[Reason, ...]]:
    """Return the verdict, with every rule that led to it.

    `unfit`: surely no better than guessing (the interval's upper end is not above it), or no better
    in both accuracy and NLL. `weak`: not shown to beat guessing, no gain in likelihood over the
    prior or over the examples in the prompt, or an interval wider than `WIDE`. `healthy` otherwise.
    """
    guessing = f"guessing is right for {guess.accuracy:.0%}"
    shown = f"held-out accuracy {own.accuracy:.0%} [{own.low:.0%}, {own.high:.0%}]"
    if own.high <= guess.accuracy:
        return "unfit", (Reason("below_guessing", f"{shown}: surely no better than guessing; {guessing}"),)
    if own.accuracy <= guess.accuracy and own.nll >= guess.nll:
        message = (
            f"{shown} and NLL {own.nll:.2f}: neither beats guessing; {guessing}, with NLL {guess.nll:.2f}"
        )
        return "unfit", (Reason("no_better_than_guessing", message),)
    reasons = []
    if own.low <= guess.accuracy:
        reasons.append(Reason("not_shown_to_beat_guessing", f"{shown} may be guessing; {guessing}"))
    for code, name, comparison in (
        ("no_gain_over_prior", "the prior without adaptation", over_prior),
        ("no_gain_over_in_context", "the examples in the prompt", over_in_context),
    ):
        if comparison.log_likelihood_gain <= 0:
            gain = f"{comparison.log_likelihood_gain:+.2f} ± {comparison.standard_error:.2f} nats an example"
            reasons.append(Reason(code, f"no better than {name}: {gain}"))
    if own.high - own.low > WIDE:
        reasons.append(Reason("too_few_examples", f"{shown} rests on {own.n} examples only"))
    if reasons:
        return "weak", tuple(reasons)
    return "healthy", (Reason("beats_guessing", f"{shown}; {guessing}"),)


def best_guess(support: Sequence[Example]) -> Guess:
    """Return what can be reached without the input on a support set with options.

    Where all examples share their options it answers by label frequencies, else by equal chances.
    """
    chance = fmean(1 / len(example.options) for example in support)
    nll = fmean(math.log(len(example.options)) for example in support)
    if len({frozenset(example.options) for example in support}) > 1:
        return Guess(chance, nll)
    shares = [count / len(support) for count in Counter(example.output for example in support).values()]
    return Guess(max(shares), -math.fsum(share * math.log(share) for share in shares))


def suspects(support: Sequence[Example], held_out: Sequence[HeldOutAnswer]) -> tuple[Suspect, ...]:
    """Return the examples whose held-out answer contradicts the label, the surest first.

    The answer's probability is at least `SURE`.
    """
    found = [
        Suspect(
            row.index,
            support[row.index].output,
            support[row.index].options[row.answer],
            max(row.probabilities),
        )
        for row in held_out
        if not row.correct and max(row.probabilities) >= SURE
    ]
    return tuple(sorted(found, key=lambda suspect: -suspect.probability))


def conflicts(support: Sequence[Example]) -> tuple[Conflict, ...]:
    """Return the groups of examples whose inputs are equal and whose labels are not.

    White space around inputs is ignored.
    """
    of_input: dict[str, list[int]] = {}
    for i, example in enumerate(support):
        of_input.setdefault(example.input.strip(), []).append(i)
    groups = (
        Conflict(tuple(indices), tuple(support[i].output for i in indices)) for indices in of_input.values()
    )
    return tuple(group for group in groups if len(set(group.labels)) > 1)


def unseen_options(support: Sequence[Example]) -> tuple[str, ...]:
    """Return the options that all examples share and none has as its label."""
    if len({frozenset(example.options) for example in support}) > 1:
        return ()
    shown = {example.output for example in support}
    return tuple(option for option in support[0].options if option not in shown)


def _mean_and_error(values: Sequence[float], folds: int) -> tuple[float, float]:
    error = stdev(values) * math.sqrt(shared_training(folds) / len(values)) if len(values) > 1 else 0.0
    return fmean(values), error
