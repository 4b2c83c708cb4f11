"""What held-out examples say about an adapter: estimates with intervals, comparisons, suspects and a verdict.

Pure: it sees labels and probabilities, never a model (docs/confidence.md).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Literal

from abmll.assurance.folds import Scored
from abmll.calibrator import Shown
from abmll.posterior.movement import Movement
from abmll.text.tasks import Example

LEVEL = 0.9
"""Of every interval here."""
# A held-out answer at least this probable that contradicts its label makes the label suspect.
SURE = 0.8
# An interval wider than this says too little; one of up to eight examples may be.
WIDE = 0.6

Verdict = Literal["healthy", "weak", "unfit"]
Helped = Literal["yes", "no", "unclear"]


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`."""

    low: float
    high: float


def shared_training(folds: int) -> float:
    """What multiplies the variance of a mean over answers of `folds` folds, since any two share most of their training examples.

    1 + folds n2 / n1, where a fold's adapter is fitted to n1 examples and asked for n2 (Nadeau and Bengio 2003, the corrected
    resampled variance): about 2, and 1 for a single fold, whose answers come from one adapter.
    """
    return 1 + folds / (folds - 1) if folds > 1 else 1.0


def wilson(successes: int, n: int, level: float = LEVEL, *, folds: int = 1) -> Interval:
    """Wilson's score interval of a proportion, `successes` of `n` (at least 1).

    It is that of independent trials for one fold; for more it counts as many trials as have the variance that `shared_training`
    says.
    """
    z, trials = NormalDist().inv_cdf((1 + level) / 2), n / shared_training(folds)
    share, spread = successes / n, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    # Exactly 0 and 1 where none or all succeed; rounding must not push them out.
    low = 0.0 if successes == 0 else centre - half
    return Interval(low, 1.0 if successes == n else centre + half)


@dataclass(frozen=True)
class Estimate:
    """Accuracy on `n` examples with its `wilson` interval, and mean NLL in nats with its standard error (0 for one example).

    Both allow for what the answers of several folds share.
    """

    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    nll: float
    nll_standard_error: float

    @classmethod
    def of(cls, rows: Sequence[Scored], folds: int = 1) -> Estimate:
        """From at least one scored example; `folds` is by how many adapters they were answered."""
        n, correct = len(rows), sum(row.correct for row in rows)
        interval = wilson(correct, n, folds=folds)
        nll, error = _mean_and_error([row.nll for row in rows], folds)
        return cls(n, correct, correct / n, interval.low, interval.high, nll, error)


@dataclass(frozen=True)
class Comparison:
    """The adapter against something else on the same examples.

    `log_likelihood_gain` is the mean over examples, in nats, with its standard error. `gained` examples only the adapter
    answers right, `lost` only the other; `p_value` is McNemar's exact test of the two, two-sided. `helped` is whether the
    gain's interval of level `LEVEL` lies on one side of zero.
    """

    helped: Helped
    log_likelihood_gain: float
    standard_error: float
    gained: int
    lost: int
    p_value: float

    @classmethod
    def of(cls, own: Sequence[Scored], other: Sequence[Scored], folds: int = 1) -> Comparison:
        """`own`, by as many adapters as there are `folds`, less `other`, example by example."""
        pairs = list(zip(own, other, strict=True))
        gain, error = _mean_and_error([b.nll - a.nll for a, b in pairs], folds)
        gained = sum(a.correct and not b.correct for a, b in pairs)
        lost = sum(b.correct and not a.correct for a, b in pairs)
        width = NormalDist().inv_cdf((1 + LEVEL) / 2) * error if len(pairs) > 1 else math.inf
        helped: Helped = "yes" if gain > width else "no" if gain < -width else "unclear"
        return cls(helped, gain, error, gained, lost, sign_test(gained, lost))


def sign_test(one: int, other: int) -> float:
    """Two-sided p-value of `one` against `other` under a fair coin (McNemar's exact test); 1 without any."""
    n = one + other
    tail = sum(math.comb(n, i) for i in range(min(one, other) + 1))
    return min(1.0, 2 * tail / float(2**n))


@dataclass(frozen=True)
class Suspect:
    """A support example, by its position, whose held-out answer contradicts its label with this probability."""

    index: int
    label: str
    answer: str
    probability: float


@dataclass(frozen=True)
class Conflict:
    """Positions of support examples with one input, and their different labels in the same order."""

    indices: tuple[int, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Guess:
    """The best that can be had without looking at the input: always the commonest label, or that of equal chances."""

    accuracy: float
    nll: float


@dataclass(frozen=True)
class Reason:
    """Why a verdict: a stable code and a sentence."""

    code: str
    message: str


@dataclass(frozen=True)
class Diagnosis:
    """An adapter as its own support shows it. `held_out`, `prior` and `in_context` are on the same examples.

    `prior` is the mean of the global posterior; `in_context` the same with the examples of the other folds as demonstrations,
    as many as fit. `asked_folds` is what the caller asked for (None: the default), `folds` what there was.
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

    @property
    def shown(self) -> Shown:
        """What a calibrator wants to know of it."""
        return Shown(self.held_out.correct, self.held_out.n)


def diagnose(
    support: Sequence[Example],
    held_out: Sequence[Scored],
    prior: Sequence[Scored],
    in_context: Sequence[Scored],
    movement: Movement,
    *,
    asked_folds: int | None,
    folds: int,
    samples: int,
) -> Diagnosis:
    """The diagnosis of an adapter from what three ways of answering give for the same examples of its `support`."""
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
    """The verdict, with every rule that led to it.

    `unfit`: surely no better than guessing (the interval's upper end is not above it), or no better on either count that there
    is, accuracy and NLL. `weak`: not shown to beat guessing, no gain in likelihood over the prior or over in-context use, or
    an interval wider than `WIDE`. `healthy` otherwise.
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
    """What ignoring the input gives on a support set with options: by label frequencies where all share their options."""
    chance = fmean(1 / len(example.options) for example in support)
    nll = fmean(math.log(len(example.options)) for example in support)
    if len({frozenset(example.options) for example in support}) > 1:
        return Guess(chance, nll)
    shares = [count / len(support) for count in Counter(example.output for example in support).values()]
    return Guess(max(shares), -math.fsum(share * math.log(share) for share in shares))


def suspects(support: Sequence[Example], held_out: Sequence[Scored]) -> tuple[Suspect, ...]:
    """Examples whose held-out answer contradicts the label with a probability of at least `SURE`, the surest first."""
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
    """Groups of examples that have one input (but for white space around it) and different labels."""
    of_input: dict[str, list[int]] = {}
    for i, example in enumerate(support):
        of_input.setdefault(example.input.strip(), []).append(i)
    groups = (
        Conflict(tuple(indices), tuple(support[i].output for i in indices)) for indices in of_input.values()
    )
    return tuple(group for group in groups if len(set(group.labels)) > 1)


def unseen_options(support: Sequence[Example]) -> tuple[str, ...]:
    """Options that all examples share and none has as its label."""
    if len({frozenset(example.options) for example in support}) > 1:
        return ()
    shown = {example.output for example in support}
    return tuple(option for option in support[0].options if option not in shown)


def _mean_and_error(values: Sequence[float], folds: int) -> tuple[float, float]:
    error = stdev(values) * math.sqrt(shared_training(folds) / len(values)) if len(values) > 1 else 0.0
    return fmean(values), error
