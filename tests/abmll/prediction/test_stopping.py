"""The running interval rarely misses, and what settles a prediction."""

import math

import pytest
import torch

from abmll.prediction.settings import Thresholds
from abmll.prediction.stopping import StopRule, half_width, settled


@pytest.mark.parametrize(
    "draw",
    [
        lambda g, n: torch.randn(n, 32, generator=g),
        lambda g, n: torch.rand(n, 32, generator=g),
        lambda g, n: (2 * torch.randn(n, 32, generator=g)).sigmoid(),  # probabilities crowded at both ends
    ],
    ids=["normal", "uniform", "sigmoid"],
)
def test_the_interval_rarely_misses_the_mean_at_any_look(draw) -> None:  # type: ignore[no-untyped-def]
    """Misses stay at alpha = 5 %, up to 3 standard errors.

    Each of 2,000 sequences is looked at after 4, 8, ... 32 blocks.
    """
    values = draw(torch.Generator().manual_seed(0), 2000)
    truth = float(draw(torch.Generator().manual_seed(1), 50_000).mean())
    missed = 0
    for row in values:
        looks = (row[:k] for k in range(4, 33, 4))
        missed += any(abs(float(look.mean()) - truth) > half_width(look, 0.05) for look in looks)
    assert missed / 2000 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def probabilities(top: list[float]) -> torch.Tensor:
    first = torch.tensor(top)
    return torch.stack([first, 1 - first], -1)


def test_equal_samples_settle_as_soon_as_there_are_enough() -> None:
    assert not settled(probabilities([0.9] * 7), StopRule(), paired=False)
    assert settled(probabilities([0.9] * 8), StopRule(), paired=False)


def test_pairs_that_cancel_settle_what_single_samples_do_not() -> None:
    samples = probabilities([0.9, 0.7, 0.95, 0.65, 0.85, 0.75, 0.92, 0.68])
    assert settled(samples, StopRule(), paired=True)
    assert not settled(samples, StopRule(), paired=False)


def test_a_gate_far_from_the_confidence_is_decided_early_and_one_beside_it_is_not() -> None:
    samples = probabilities([0.9, 0.85, 0.95, 0.9, 0.8, 0.93, 0.88, 0.91])
    rule = lambda **gate: StopRule(Thresholds(**gate), tolerance=1e-6)  # noqa: E731
    assert settled(samples, rule(min_confidence=0.6), paired=False)
    assert not settled(samples, rule(min_confidence=0.89), paired=False)
    assert settled(samples, rule(min_confidence=0.99), paired=False)
    assert settled(samples, rule(min_margin=0.2), paired=False)
    assert not settled(samples, rule(), paired=False)
    assert settled(samples, rule(max_mutual_information=0.5), paired=False)
    assert settled(samples, rule(min_confidence=0.89, max_mutual_information=1e-9), paired=False) is False
    assert settled(samples, rule(min_confidence=0.99, min_margin=0.8), paired=False)  # one failure is enough
