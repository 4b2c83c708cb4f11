"""Estimates against closed forms and scipy, and the verdict's rules one by one."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from abmll.assurance.diagnostics import (
    SURE,
    Conflict,
    Evidence,
    Movement,
    Suspect,
    conflicts,
    diagnose,
    judge,
    suspects,
    unseen_options,
)
from abmll.assurance.estimates import (
    AnswerableEstimate,
    Comparison,
    Estimate,
    Guess,
    RankedScore,
    best_guess,
    shared_training,
    sign_test,
    wilson,
)
from abmll.assurance.folds import HeldOutAnswer
from abmll.decoder.layout import Site, unflatten
from abmll.errors import PosteriorMismatchError
from abmll.posterior.movement import movement
from abmll.posterior.noise.weight import weight_divergences
from abmll.posterior.posteriors import GlobalPosterior, TaskPosterior
from abmll.text.questions import Case, Question, examples_of
from abmll.text.tasks import CANNOT_TELL, Example
from tests.tiny import make_config

OPTIONS = ("a", "b")


def answer(correct: bool, top: float = 0.7, index: int = 0) -> HeldOutAnswer:
    return HeldOutAnswer(index, (top, 1 - top), 0 if correct else 1)


@given(n=st.integers(1, 300), data=st.data(), level=st.sampled_from([0.8, 0.9, 0.95]))
def test_wilson_agrees_with_scipy(n: int, data: st.DataObject, level: float) -> None:
    successes = data.draw(st.integers(0, n))
    found = wilson(successes, n, level)
    expected = binomtest(successes, n).proportion_ci(level, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= found.low <= successes / n <= found.high <= 1


def test_answers_of_folds_count_as_fewer_trials() -> None:
    """Four folds of 4 are fitted to 12 and asked for 4.

    So the variance is 1 + 4 * 4 / 12 times that of independent trials.
    """
    assert shared_training(4) == pytest.approx(1 + 4 * 4 / 12)
    assert shared_training(1) == 1
    found, expected = wilson(14, 28, folds=4), wilson(6, 12)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    rows = [answer(i % 4 > 0) for i in range(16)]
    one, four = Estimate.of(rows), Estimate.of(rows, 4)
    assert four.nll_standard_error == pytest.approx(one.nll_standard_error * math.sqrt(7 / 3))
    assert four.low < one.low < one.accuracy == four.accuracy < one.high < four.high


@given(one=st.integers(0, 40), other=st.integers(0, 40))
def test_the_sign_test_counts_the_tosses_that_are_as_uneven(one: int, other: int) -> None:
    """Of all 2^n equally likely ones."""
    n, less = one + other, min(one, other)
    as_uneven = sum(math.comb(n, heads) for heads in range(n + 1) if min(heads, n - heads) <= less)
    assert sign_test(one, other) == pytest.approx(as_uneven / 2**n)


def test_an_estimate_counts() -> None:
    found = Estimate.of([answer(True), answer(True), answer(False)])
    right, wrong = -math.log(0.7), -math.log(0.3)
    assert (found.n, found.correct, found.accuracy) == (3, 2, 2 / 3)
    assert found.nll == pytest.approx((2 * right + wrong) / 3)
    # The standard deviation is (w - r) / sqrt 3; the error is that over sqrt 3.
    assert found.nll_standard_error == pytest.approx((wrong - right) / 3)
    assert Estimate.of([answer(True)]).nll_standard_error == 0


def test_a_comparison_is_paired() -> None:
    own, other = [answer(True), answer(True), answer(False)], [answer(False), answer(True), answer(True)]
    found = Comparison.of(own, other)
    step = math.log(0.7 / 0.3)
    assert (found.gained, found.lost, found.p_value) == (1, 1, 1.0)
    assert found.log_likelihood_gain == pytest.approx(0, abs=1e-12)
    assert found.standard_error == pytest.approx(step / math.sqrt(3))
    assert found.helped == "unclear"
    swapped = Comparison.of([answer(True)] * 5 + [answer(True, 0.6)], [answer(False)] * 6)
    assert (swapped.helped, swapped.gained, swapped.p_value) == ("yes", 6, pytest.approx(2 / 2**6))
    assert Comparison.of([answer(False)] * 6, [answer(True)] * 5 + [answer(True, 0.6)]).helped == "no"
    assert Comparison.of([answer(True)], [answer(False)]).helped == "unclear"


def test_the_best_guess_ignores_the_input() -> None:
    labelled = [Example(str(i), label, OPTIONS) for i, label in enumerate("aaab")]
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert best_guess(labelled) == Guess(0.75, pytest.approx(expected))
    choice = [Example("1", "p", ("p", "q")), Example("2", "r", ("r", "s", "t", "u"))]
    assert best_guess(choice) == Guess(0.375, pytest.approx((math.log(2) + math.log(4)) / 2))


def test_what_is_suspect_conflicting_and_never_shown() -> None:
    options = ("a", "b", "c")
    support = [
        Example(text, label, options) for text, label in (("x", "a"), (" x ", "b"), ("y", "a"), ("z", "a"))
    ]
    rows = [
        HeldOutAnswer(0, (0.1, 0.85, 0.05), 0),
        HeldOutAnswer(1, (0.2, 0.75, 0.05), 1),
        HeldOutAnswer(2, (0.02, 0.0, 0.98), 0),
        HeldOutAnswer(3, (0.3, SURE - 0.11, 0.01), 0),
    ]
    assert suspects(support, rows) == (Suspect(2, "a", "c", 0.98), Suspect(0, "a", "b", 0.85))
    assert conflicts(support) == (Conflict((0, 1), ("a", "b")),)
    assert unseen_options(support) == ("c",)
    assert unseen_options([Example("1", "p", ("p", "q")), Example("2", "r", ("r", "s"))]) == ()


GUESS = Guess(0.5, math.log(2))
GAIN = Comparison("yes", 0.5, 0.1, 5, 0, 0.06)
LOSS = Comparison("no", -0.5, 0.1, 0, 5, 0.06)


def estimate(correct: int, n: int, nll: float) -> Estimate:
    interval = wilson(correct, n, folds=n)
    return Estimate(n, correct, correct / n, interval.low, interval.high, nll, 0.1)


@pytest.mark.parametrize(
    ("own", "prior", "in_context", "verdict", "codes"),
    [
        (estimate(15, 16, 0.3), GAIN, GAIN, "healthy", ["beats_guessing"]),
        (estimate(2, 16, 0.3), GAIN, GAIN, "unfit", ["below_guessing"]),
        (estimate(8, 16, 0.9), GAIN, GAIN, "unfit", ["no_better_than_guessing"]),
        (estimate(8, 16, 0.5), GAIN, GAIN, "weak", ["not_shown_to_beat_guessing"]),
        (estimate(9, 16, 0.9), GAIN, GAIN, "weak", ["not_shown_to_beat_guessing"]),
        (estimate(15, 16, 0.3), LOSS, GAIN, "weak", ["no_gain_over_prior"]),
        (estimate(15, 16, 0.3), GAIN, LOSS, "weak", ["no_gain_over_in_context"]),
        (estimate(3, 4, 0.5), GAIN, LOSS, "weak",
         ["not_shown_to_beat_guessing", "no_gain_over_in_context", "too_few_examples"]),
        (estimate(4, 4, 0.1), GAIN, GAIN, "weak", ["not_shown_to_beat_guessing", "too_few_examples"]),
        (estimate(8, 8, 0.1), GAIN, GAIN, "healthy", ["beats_guessing"]),
    ],
)  # fmt: skip
def test_the_rules_of_the_verdict(own, prior, in_context, verdict, codes) -> None:
    found, reasons = judge(Evidence(own, own, own, prior, in_context, GUESS))
    assert (found, [reason.code for reason in reasons]) == (verdict, codes)
    assert all(f"{own.accuracy:.0%}" in reason.message or "nats" in reason.message for reason in reasons)


def test_more_right_answers_never_make_a_worse_verdict() -> None:
    order = {"unfit": 0, "weak": 1, "healthy": 2}
    for n in (4, 16, 64):
        own = [estimate(k, n, 0.6) for k in range(n + 1)]
        found = [order[judge(Evidence(one, one, one, GAIN, GAIN, GUESS))[0]] for one in own]
        assert found == sorted(found)


def test_a_diagnosis_puts_it_together() -> None:
    support = [Example(str(i), OPTIONS[i % 2], OPTIONS) for i in range(16)]
    rows = [HeldOutAnswer(i, (0.9, 0.1) if i % 2 == 0 else (0.2, 0.8), i % 2) for i in range(16)]
    even = [replace(row, probabilities=(0.5, 0.5)) for row in rows]
    moved = Movement(10, 1.0, 0.1, 0.9, 0.5)
    found = diagnose(support, rows, even, even, moved, asked_folds=None, folds=16, samples=8)
    assert (found.verdict, found.held_out.correct, found.prior.correct) == ("healthy", 16, 8)
    assert (found.over_prior.gained, found.over_in_context.lost) == (8, 0)
    assert found.guess.accuracy == 0.5
    assert (found.suspects, found.conflicts, found.unseen_options) == ((), (), ())


# ---- several questions


TOPIC = Question("topic", "choice", "What is it about?", ("a", "b"))
LEVEL = Question("level", "score", "How angry?", ("calm", "cross", "angry"))


def of_cases(n: int, answers: tuple[float, float]) -> tuple[list[Example], list[HeldOutAnswer]]:
    """Return n cases of both questions, every fourth of which does not tell the level."""
    cases = [
        Case(str(i), {"topic": "ab"[i % 2], "level": None if i % 4 == 3 else LEVEL.options[i % 3]})
        for i in range(n)
    ]
    support = examples_of([TOPIC, LEVEL], cases)
    rows = []
    for i, example in enumerate(support):
        label = example.options.index(example.output)
        size, known = len(example.options) - 1, example.output != CANNOT_TELL
        top = answers[i % 2]
        other = (1 - top) / (size - 1)
        rows.append(
            HeldOutAnswer(
                i,
                tuple(top if option == label % size else other for option in range(size)),
                label,
                0.9 if known or i % 8 == 7 else 0.2,
            )
        )
    return support, rows


def test_each_question_has_a_diagnosis_and_all_have_one_verdict() -> None:
    support, rows = of_cases(16, (0.9, 0.1))
    even = [
        replace(row, probabilities=(1 / len(row.probabilities),) * len(row.probabilities)) for row in rows
    ]
    moved = Movement(10, 1.0, 0.1, 0.9, 0.5)
    found = diagnose(
        support, rows, even, even, moved, asked_folds=None, folds=16, samples=8, questions=[TOPIC, LEVEL]
    )
    topic, level = found.questions
    assert (topic.name, topic.instruction, topic.verdict) == ("topic", "What is it about?", "healthy")
    assert (level.name, level.verdict) == ("level", "unfit")
    assert (found.verdict, found.reasons[-1].code) == ("weak", "question_unfit")
    assert "'level'" in found.reasons[-1].message
    # Alone, a question is diagnosed as an adapter that has it alone, with its own answers.
    own = [replace(row, index=i) for i, row in enumerate(rows[::2])]
    base = [replace(row, index=i) for i, row in enumerate(even[::2])]
    alone = diagnose(support[::2], own, base, base, moved, asked_folds=None, folds=16, samples=8)
    assert topic.evidence is not None
    for name in ("held_out", "prior", "in_context", "over_prior", "over_in_context", "guess"):
        assert (
            getattr(topic.evidence, name)
            == getattr(alone, name)
            == getattr(alone.questions[0].evidence, name)
        ), name
    assert level.evidence is not None
    assert (topic.evidence.held_out.n, level.evidence.held_out.n, found.held_out.n) == (16, 12, 28)
    assert found.guess.accuracy == pytest.approx(
        (16 * topic.evidence.guess.accuracy + 12 * level.evidence.guess.accuracy) / 28
    )
    assert (topic.answerable, topic.levels) == (None, None)
    assert level.levels is not None


def test_answerable_and_levels_by_hand() -> None:
    rows = [
        HeldOutAnswer(0, (0.5, 0.3, 0.2), 0, 0.9),
        HeldOutAnswer(1, (0.1, 0.2, 0.7), 1, 0.4),
        HeldOutAnswer(2, (0.1, 0.2, 0.7), 3, 0.4),
        HeldOutAnswer(3, (0.1, 0.2, 0.7), 3, 0.1),
    ]
    found = AnswerableEstimate.of(rows)
    assert found is not None
    # Pairs: .9 > .4, .9 > .1, .4 = .4, .4 > .1.
    assert (found.n, found.untellable, found.auroc) == (4, 2, 3.5 / 4)
    assert found.brier == pytest.approx((0.01 + 0.36 + 0.16 + 0.01) / 4)
    assert found.guess_brier == 0.25
    assert AnswerableEstimate.of(rows[:2]) is AnswerableEstimate.of(rows[2:]) is None
    levels = RankedScore.of(rows[:2])
    # Sums below each level: .5, .8 against 1, 1; and .1, .3 against 0, 1.
    assert levels.score == pytest.approx(((0.25 + 0.04) / 2 + (0.01 + 0.49) / 2) / 2)
    # Label frequencies .5, .5, 0: sums .5, 1 against 1, 1; and against 0, 1.
    assert levels.guess == pytest.approx((0.25 / 2 + 0.25 / 2) / 2)
    near, far = (HeldOutAnswer(0, p, 0) for p in ((0.4, 0.6, 0.0), (0.4, 0.0, 0.6)))
    assert RankedScore.of([near]).score < RankedScore.of([far]).score


def test_answers_about_one_input_count_together() -> None:
    """Two answers to each of 8 inputs that are right or wrong together are 8 answers."""
    rows = [answer(i < 4, index=i) for i in range(8)]
    twice, inputs = [row for row in rows for _ in range(2)], [str(i) for i in range(8) for _ in range(2)]
    one, two = Estimate.of(rows), Estimate.of(twice, inputs=inputs)
    assert two.nll_standard_error == pytest.approx(one.nll_standard_error)
    independent = Estimate.of(twice)
    assert independent.nll_standard_error < two.nll_standard_error
    # 15 of 16 degrees of freedom in place of 7 of 8.
    expected = wilson(8, 16, alike=2 * (8 / 7) / (16 / 15))
    assert (two.low, two.high) == pytest.approx((expected.low, expected.high))
    assert Estimate.of(twice, inputs=[str(i) for i in range(16)]) == independent
    assert Comparison.of(twice, twice[::-1], inputs=inputs).standard_error == pytest.approx(
        Comparison.of(rows, rows[::-1]).standard_error
    )


def test_a_question_of_which_nothing_is_held_out_says_so() -> None:
    support = examples_of(
        [TOPIC, LEVEL], [Case("x", {"topic": "a", "level": "calm"}), Case("y", {"topic": "b"})]
    )
    rows = [HeldOutAnswer(1, (0.3, 0.4, 0.3), 0, 0.9)]
    moved = Movement(10, 1.0, 0.1, 0.9, 0.5)
    found = diagnose(support, rows, rows, rows, moved, asked_folds=None, folds=1, samples=8)
    topic, level = found.questions
    assert (topic.evidence, topic.verdict, topic.reasons[0].code) == (None, "weak", "not_held_out")
    assert level.evidence is not None
    assert level.name == ""


def test_conflicts_are_within_a_question() -> None:
    cases = [Case("x", {"topic": "a", "level": "calm"}), Case(" x", {"topic": "b", "level": "calm"})]
    support = examples_of([TOPIC, LEVEL], cases)
    assert conflicts(support) == (Conflict((0, 2), ("a", "b")),)
    assert unseen_options(support) == ()
    assert unseen_options(support[1::2]) == ("cross", "angry")


# ---- movement ------------------------------------------------------------------------------------

SITES = (Site(0, "q", 6, 8), Site(1, "down", 10, 6))


@pytest.mark.parametrize("elements", [1 << 20, 12])
def test_the_movement_is_that_of_dense_gaussians(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abmll.posterior.movement.ELEMENTS", elements)
    config = make_config(rank=2, alpha=4.0, offset=0.02, scale=3.0)
    theta = GlobalPosterior.untrained(config, SITES, seed=1)
    noise = torch.randn(2, len(theta.values), generator=torch.Generator().manual_seed(0))
    theta = GlobalPosterior(config, SITES, theta.values + 0.1 * noise[0])
    phi = TaskPosterior(config, SITES, theta.values + 0.05 * noise[1])
    kl = floored = change = length = 0.0
    for q, p in zip(phi.by_site(), theta.by_site(), strict=True):
        means, sds = [], []
        for t in (q, p):
            means.append(2.0 * t.mean_b.double() @ t.mean_a.double())
            sds.append((2.0 * t.spread_b.double() @ t.spread_a.double() + 0.02).abs() * 3.0)
        own, prior = (torch.distributions.Normal(m, s) for m, s in zip(means, sds, strict=True))
        kl += float(torch.distributions.kl_divergence(own, prior).sum())
        own, prior = (
            torch.distributions.Normal(m, s.clamp_min(0.06)) for m, s in zip(means, sds, strict=True)
        )
        floored += float(torch.distributions.kl_divergence(own, prior).sum())
        change += float((means[0] - means[1]).square().sum())
        length += float(means[1].square().sum())
    found = movement(phi, theta)
    assert found.parameters == 6 * 8 + 10 * 6
    assert found.kl_nats == pytest.approx(kl, rel=1e-6)
    assert found.kl_nats_floored == pytest.approx(floored, rel=1e-6)
    divergences, _ = weight_divergences(
        config, SITES, unflatten(phi.values[None], SITES, 2), unflatten(theta.values[None], SITES, 2)
    )
    assert found.kl_nats == pytest.approx(float(divergences[0]), rel=1e-3)
    assert found.kl_nats_per_parameter == pytest.approx(kl / 108, rel=1e-6)
    assert found.relative_mean_change == pytest.approx(math.sqrt(change / length))


def test_no_movement_and_what_has_none() -> None:
    config = make_config(rank=2)
    theta = GlobalPosterior.untrained(config, SITES)
    assert movement(TaskPosterior.start(theta), theta) == Movement(108, 0.0, 0.0, 0.0, None)
    output = GlobalPosterior.untrained(replace(config, noise=replace(config.noise, family="output")), SITES)
    assert movement(TaskPosterior.start(output), output).kl_nats is None
    with pytest.raises(PosteriorMismatchError):
        movement(TaskPosterior.start(theta), output)
