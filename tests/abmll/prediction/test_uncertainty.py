"""The predictive distribution's summary against hand values and independent formulas."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abmll.prediction.uncertainty import blocks_of, entropy, pooled_values, summarise


def test_two_samples_by_hand() -> None:
    predictive = summarise(("a", "b"), torch.tensor([[0.9, 0.1], [0.5, 0.5]]), samples=2)
    assert predictive.answer == "a"
    assert predictive.probabilities == pytest.approx((0.7, 0.3))
    assert predictive.margin == pytest.approx(0.4)
    assert predictive.stds == pytest.approx((math.sqrt(0.08), math.sqrt(0.08)))
    total = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    expected = (-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) + math.log(2)) / 2
    u = predictive.uncertainty
    assert (u.total_entropy, u.expected_entropy) == pytest.approx((total, expected))
    assert u.mutual_information == pytest.approx(2 * (total - expected))
    assert u.mc_standard_error == pytest.approx(math.sqrt(0.08) / math.sqrt(2))


def test_the_mean_alone_knows_nothing_of_spread() -> None:
    predictive = summarise(("a", "b", "c"), torch.tensor([[0.2, 0.5, 0.3]]), samples=0)
    u = predictive.uncertainty
    assert predictive.samples == 0
    assert predictive.stds == (0.0, 0.0, 0.0)
    assert (u.mutual_information, u.mc_standard_error) == (0.0, 0.0)
    assert (
        u.total_entropy == u.expected_entropy == pytest.approx(float(entropy(torch.tensor([0.2, 0.5, 0.3]))))
    )


def test_unlisted_probability_counts_as_one_outcome() -> None:
    predictive = summarise(("text",), torch.tensor([[0.25], [0.25]]), samples=2)
    assert predictive.confidence == predictive.margin == pytest.approx(0.25)
    assert predictive.uncertainty.total_entropy == pytest.approx(
        -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    )


def test_mutual_information_is_unbiased_where_the_plug_in_is_low() -> None:
    """The mean over many draws of S = 8 is the value at S = 200,000."""
    g = torch.Generator().manual_seed(0)
    logits = lambda n: torch.randn(n, 3, generator=g, dtype=torch.float64) * 0.5  # noqa: E731
    truth = summarise(("a", "b", "c"), logits(200_000).softmax(-1), samples=1).uncertainty.mutual_information
    small = [
        summarise(("a", "b", "c"), logits(8).softmax(-1), samples=8).uncertainty.mutual_information
        for _ in range(3000)
    ]
    values = torch.tensor(small)
    standard_error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - truth) < 4 * standard_error + 0.01 * truth
    assert float(values.mean()) * 7 / 8 < truth - 4 * standard_error


@given(st.lists(st.lists(st.floats(-20, 20), min_size=3, max_size=3), min_size=1, max_size=9))
def test_bounds_hold_for_any_samples(rows: list[list[float]]) -> None:
    p = torch.tensor(rows, dtype=torch.float64).softmax(-1)
    predictive = summarise(("a", "b", "c"), p, samples=len(rows))
    u = predictive.uncertainty
    assert sum(predictive.probabilities) == pytest.approx(1)
    assert 0 <= u.expected_entropy <= math.log(3) + 1e-9
    assert -1e-9 <= u.total_entropy <= math.log(3) + 1e-9
    assert u.mutual_information >= 0
    assert 1 / 3 - 1e-9 <= predictive.confidence <= 1 + 1e-9
    assert 0 <= predictive.margin <= predictive.confidence


def test_antithetic_pairs_count_once_in_the_error_of_the_mean() -> None:
    paired = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.85, 0.15], [0.75, 0.25]])
    alone = summarise(("a", "b"), paired, samples=4).uncertainty
    both = summarise(("a", "b"), paired, samples=4, paired=True).uncertainty
    assert both.mc_standard_error == pytest.approx(0, abs=1e-7)
    assert alone.mc_standard_error == pytest.approx(float(paired[:, 0].double().std()) / 2)
    # The mean has no error, so the plug-in information has no bias.
    assert both.mutual_information == pytest.approx(both.total_entropy - both.expected_entropy, abs=1e-6)
    assert alone.mutual_information > both.mutual_information


def test_mutual_information_of_antithetic_pairs_is_unbiased_too() -> None:
    g = torch.Generator().manual_seed(0)

    def draw(pairs: int) -> torch.Tensor:
        noise = 0.7 * torch.randn(pairs, 1, 3, generator=g, dtype=torch.float64)
        centre = torch.tensor([1.0, 0.0, -0.5], dtype=torch.float64)
        return (centre + torch.cat([noise, -noise], 1)).flatten(0, 1).softmax(-1)

    truth = summarise(("a", "b", "c"), draw(200_000), samples=1).uncertainty.mutual_information
    values = torch.tensor(
        [
            summarise(("a", "b", "c"), draw(4), samples=8, paired=True).uncertainty.mutual_information
            for _ in range(2000)
        ]
    )
    standard_error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - truth) < 4 * standard_error + 0.01 * truth


def test_a_temperature_scales_the_average_and_leaves_the_entropies() -> None:
    """By hand, (0.8, 0.2) to the power 1/2 and normalised is (2/3, 1/3)."""
    p = torch.tensor([[0.9, 0.1], [0.7, 0.3]])
    cold, warm = (summarise(("a", "b"), p, samples=2, temperature=t) for t in (1.0, 2.0))
    assert warm.probabilities == pytest.approx((2 / 3, 1 / 3))
    assert warm.margin == pytest.approx(1 / 3)
    assert warm.stds[0] == pytest.approx(math.sqrt(2) * (0.75 - 1 / (1 + math.sqrt(3 / 7))) / 2)
    assert warm.answer == cold.answer
    same = ("total_entropy", "expected_entropy", "mutual_information")
    assert [getattr(warm.uncertainty, n) for n in same] == [getattr(cold.uncertainty, n) for n in same]


def test_options_without_probability_stay_without_at_any_temperature() -> None:
    assert summarise(
        ("a", "b", "c"), torch.tensor([[0.8, 0.2, 0.0]]), samples=0, temperature=2.0
    ).probabilities == pytest.approx((2 / 3, 1 / 3, 0))


@pytest.mark.parametrize("paired", [False, True])
def test_the_error_of_a_tempered_average_is_that_over_many_draws(paired: bool) -> None:
    """The standard error is the spread of the confidence over 4,000 draws of eight samples."""
    g = torch.Generator().manual_seed(0)
    found = []
    for _ in range(4000):
        logits = torch.randn(8, 2, generator=g, dtype=torch.float64)
        found.append(summarise(("a", "b"), (logits + torch.tensor([2.0, 0.0])).softmax(-1), samples=8,
                               paired=paired, temperature=1.7))  # fmt: skip
    spread = float(torch.tensor([p.probabilities[0] for p in found]).std())
    reported = math.sqrt(sum(p.uncertainty.mc_standard_error**2 for p in found) / len(found))
    assert reported == pytest.approx(spread, rel=0.15)


def test_at_a_temperature_of_one_the_pseudo_values_are_the_blocks() -> None:
    p = torch.rand(8, 3, dtype=torch.float64).softmax(-1)
    assert torch.equal(pooled_values(p, 1.0, paired=True), blocks_of(p, paired=True))
