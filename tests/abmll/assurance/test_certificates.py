"""Certified gates against scipy, MAPIE, brute force and simulation."""

import itertools
import math

import numpy as np
import pytest
from mapie.risk_control.fwer_control import control_fwer
from scipy.stats import beta, binom, binomtest

from abmll.assurance.certificates import (
    Certificate,
    NotYet,
    certify,
    certify_looks,
    coverage_cuts,
    error_upper_bound,
    fewest_accepted,
    look_level,
    look_sizes,
    threshold_for_coverage,
)

TOY = (3.4, 1.6)  # confidences Beta(3.4, 1.6), right with that probability: 68 % accuracy


def draw(rng, n, *, calibrated=True):
    confidences = rng.beta(*TOY, n)
    return confidences, rng.random(n) < (confidences if calibrated else confidences**2)


def risk_above(threshold):
    """Return P(wrong | confidence >= threshold) of the toy, in closed form.

    E[c; c >= t] is a tail of Beta(a + 1, b).
    """
    a, b = TOY
    return 1 - a / (a + b) * beta.sf(threshold, a + 1, b) / beta.sf(threshold, a, b)


@pytest.mark.parametrize(("target", "delta"), [(0.05, 0.1), (0.1, 0.1), (0.2, 0.01)])
def test_the_fewest_that_can_pass(target, delta):
    assert fewest_accepted(target, delta) == math.ceil(math.log(delta) / math.log(1 - target))
    for errors in (0, 1, 5, 40):
        k = fewest_accepted(target, delta, errors)
        assert binom.cdf(errors, k, target) <= delta < binom.cdf(errors, k - 1, target)


def test_the_known_numbers_of_error_free_items():
    assert fewest_accepted(0.1, 0.1) == 22
    assert fewest_accepted(0.05, 0.1) == 45


@pytest.mark.parametrize("seed", range(20))
def test_the_walk_is_that_of_the_definition_and_of_mapie(seed):
    rng = np.random.default_rng(seed)
    confidences, correct = draw(rng, 300)
    cuts = [0.9, 0.8, 0.7, 0.6, 0.3]
    accepted = [int((confidences >= cut).sum()) for cut in cuts]
    errors = [int((~correct[confidences >= cut]).sum()) for cut in cuts]
    p_values = [
        binomtest(e, k, 0.2, alternative="less").pvalue for e, k in zip(errors, accepted, strict=True)
    ]
    passed = list(itertools.takewhile(lambda p: p <= 0.1, p_values))
    assert list(control_fwer(np.array(p_values), 0.1, "fixed_sequence")) == list(range(len(passed)))
    found = certify(confidences, correct, 0.2, 0.1, cuts)
    if not passed:
        assert isinstance(found, NotYet)
        return
    last = len(passed) - 1
    assert isinstance(found, Certificate)
    assert (found.threshold, found.accepted, found.errors, found.n) == (
        cuts[last],
        accepted[last],
        errors[last],
        300,
    )
    assert found.error_upper_bound <= 0.2
    interval = binomtest(errors[last], accepted[last]).proportion_ci(0.8, method="exact")
    assert found.error_upper_bound == pytest.approx(interval.high)


def test_the_walk_stops_at_the_first_that_fails_even_where_a_later_one_would_pass():
    confidences = [0.9] * 30 + [0.5] * 500
    correct = [False] * 10 + [True] * 520
    assert isinstance(certify(confidences, correct, 0.1, 0.1, [0.9, 0.5]), NotYet)
    assert isinstance(certify(confidences, correct, 0.1, 0.1, [0.5]), Certificate)


def test_cuts_depend_on_confidences_only_and_count_what_lies_above_an_item_left_out():
    rng = np.random.default_rng(0)
    confidences = rng.random(400)
    cuts = coverage_cuts(confidences, 0.1, 0.1)
    assert cuts == sorted(cuts, reverse=True)
    assert 5 <= len(cuts) <= 15
    assert cuts[-1] == 0.0
    accepted = [(confidences >= cut).sum() for cut in cuts]
    for cut, count in zip(cuts[:-1], accepted, strict=False):
        left_out = np.sort(confidences)[::-1][count]
        assert cut == math.nextafter(left_out, 2)
    assert {fewest_accepted(0.1, 0.1, e) for e in (1, 2, 3, 5)} <= set(accepted)
    assert coverage_cuts(confidences[:21], 0.1, 0.1) == []
    assert coverage_cuts(confidences[:22], 0.1, 0.1) == [0.0]
    assert coverage_cuts([0.5] * 100, 0.1, 0.1) == [0.0], "ties leave nothing between"


def test_bad_arguments_are_refused():
    for target, delta in ((0, 0.1), (1, 0.1), (0.1, 0), (0.1, 1)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            certify([0.5], [True], target, delta, [0.0])
    with pytest.raises(ValueError, match="strict to loose"):
        certify([0.5], [True], 0.1, 0.1, [0.1, 0.2])
    with pytest.raises(ValueError, match="outcomes"):
        certify([0.5], [True, True], 0.1, 0.1, [0.0])
    with pytest.raises(ValueError, match="needs a label"):
        look_sizes(0, 10, 0.1, 0.1)


@pytest.mark.parametrize("delta", [0.05, 0.2])
@pytest.mark.parametrize("n", [100, 400])
def test_certificates_are_violated_no_more_often_than_delta(n, delta):
    rng = np.random.default_rng(n)
    target, runs, violations, certified = 0.15, 1000, 0, 0
    for _ in range(runs):
        confidences, correct = draw(rng, n)
        found = certify(confidences, correct, target, delta, coverage_cuts(confidences, target, delta))
        if isinstance(found, Certificate):
            certified += 1
            violations += risk_above(found.threshold) > target
    assert certified > 50
    assert binomtest(violations, runs, delta, alternative="greater").pvalue > 0.01


def test_picking_the_loosest_threshold_that_looks_right_breaks_the_target():
    """The same toy, so that the test above can fail."""
    rng = np.random.default_rng(3)
    violations = 0
    for _ in range(300):
        confidences, correct = draw(rng, 200)
        order = np.argsort(-confidences)
        error = np.cumsum(~correct[order]) / np.arange(1, 201)
        fine = np.flatnonzero(error <= 0.15)
        if len(fine):
            violations += risk_above(confidences[order][fine[-1]]) > 0.15
    assert violations / 300 > 0.3


def test_looks_are_at_sizes_fixed_beforehand_and_spend_delta_once():
    assert sum(look_level(0.1, look) for look in range(1, 10_000)) == pytest.approx(0.1, rel=1e-3)
    assert look_sizes(100, 500, 0.1, 0.1) == [100, 150, 225, 338]
    fewest = fewest_accepted(0.1, 0.05)
    assert fewest == 29
    assert look_sizes(10, 60, 0.1, 0.1) == [35, 53], "looks at which nothing can pass cost nothing"


def test_a_look_uses_the_labels_up_to_its_size_only():
    rng = np.random.default_rng(1)
    confidences = rng.beta(8, 1, 149)
    correct = rng.random(149) < 0.99
    at_100 = certify_looks(confidences[:100], correct[:100], 0.1, 0.1, 100)
    assert isinstance(at_100, Certificate)
    alone = certify(confidences[:100], correct[:100], 0.1, 0.05, coverage_cuts(confidences[:100], 0.1, 0.05))
    assert (at_100.threshold, at_100.n, at_100.delta) == (alone.threshold, 100, 0.1)
    worse = correct.copy()
    worse[100:] = False
    assert certify_looks(confidences, worse, 0.1, 0.1, 100) == at_100


def test_asking_again_and_again_does_not_break_the_guarantee():
    """The caller adds labels until something is certified.

    The risk is just above the target, so every certificate is wrong.
    """
    rng = np.random.default_rng(5)
    runs, delta, target = 400, 0.2, 0.1
    naive = violations = 0
    for _ in range(runs):
        confidences, correct = rng.random(1200), rng.random(1200) < 0.895
        violations += isinstance(certify_looks(confidences, correct, target, delta, 60), Certificate)
        naive += any(
            isinstance(certify(confidences[:n], correct[:n], target, delta, [0.0]), Certificate)
            for n in (60, 90, 135, 203, 305, 458, 687, 1031)
        )
    assert violations / runs <= delta
    assert naive / runs > delta + 0.1


def test_how_many_more_labels_are_told_is_about_right():
    rng = np.random.default_rng(7)
    confidences, correct = rng.beta(8, 1, 4000), rng.random(4000) < 0.98
    found = certify_looks(confidences[:40], correct[:40], 0.05, 0.1, 40)
    assert isinstance(found, NotYet)
    assert found.about_n_more_labels is not None
    n = 40 + found.about_n_more_labels
    assert n in {60, 90, 135, 203, 305}
    assert isinstance(certify_looks(confidences[: 2 * n], correct[: 2 * n], 0.05, 0.1, 40), Certificate)


def test_no_number_is_told_where_more_labels_promise_nothing():
    found = certify_looks([0.9] * 200, [True, False] * 100, 0.05, 0.1, 200)
    assert found == NotYet(None)
    assert certify([], [], 0.1, 0.1, []) == NotYet(22)
    assert certify_looks([], [], 0.1, 0.1, 1) == NotYet(41), "29 suffice; looks are at 1, 2, 3, 5, 8, ..., 41"


@pytest.mark.parametrize(("accepted", "errors"), [(1, 0), (30, 0), (30, 4), (500, 77)])
def test_the_bound_is_where_so_few_errors_have_probability_delta(accepted, errors):
    assert binom.cdf(errors, accepted, error_upper_bound(accepted, errors, 0.1)) == pytest.approx(0.1)
    assert error_upper_bound(5, 5, 0.1) == error_upper_bound(0, 0, 0.1) == 1.0


def test_coverage_is_a_rank_and_holds_on_new_inputs():
    found = threshold_for_coverage([0.1, 0.2, 0.3, 0.4], 0.6)
    assert (found.threshold, found.n, found.coverage) == (0.2, 4, 0.6)
    everything = threshold_for_coverage([0.1, 0.2, 0.3, 0.4], 0.81)
    assert (everything.threshold, everything.coverage) == (0.0, 1.0)
    rng = np.random.default_rng(11)
    shares = []
    for _ in range(4000):
        confidences = rng.random(29)
        found = threshold_for_coverage(confidences, 0.5)
        shares.append(1 - found.threshold)  # of uniform confidences
    assert found.coverage == 0.5
    assert np.mean(shares) == pytest.approx(0.5, abs=0.01)
    assert np.quantile(shares, [0.05, 0.95]) == pytest.approx([found.low, found.high], abs=0.02)
