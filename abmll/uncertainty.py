"""From Monte Carlo samples of option probabilities to an answer and its uncertainty. Entropies are in nats.

With p_n the distribution under sample n of S and p = mean_n p_n:
total entropy H[p] = expected entropy mean_n H[p_n] + mutual information between answer and weights.
The plug-in mutual information of S samples is low by a factor (S - 1) / S to first order; it is corrected here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Uncertainty:
    """Entropies in nats; `mc_standard_error` is that of the top option's probability, over the samples."""

    total_entropy: float
    expected_entropy: float
    mutual_information: float
    mc_standard_error: float


@dataclass(frozen=True)
class Predictive:
    """The posterior predictive over `options`: S sampled distributions averaged in probability space.

    `probabilities` and `stds` follow `options`; `stds` are over samples (0 where there are fewer than two).
    `confidence` is the top probability and `margin` its distance to the second. `samples` is S, 0 for the mean only.
    """

    options: tuple[str, ...]
    probabilities: tuple[float, ...]
    stds: tuple[float, ...]
    uncertainty: Uncertainty
    samples: int

    @property
    def top(self) -> int:
        """Index of the most probable option; the first of several equal ones."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)

    @property
    def answer(self) -> str:
        """The most probable option."""
        return self.options[self.top]

    @property
    def confidence(self) -> float:
        """Probability of the answer."""
        return self.probabilities[self.top]

    @property
    def margin(self) -> float:
        """Probability of the answer less that of the runner-up."""
        rest = [p for i, p in enumerate(self.probabilities) if i != self.top]
        return self.confidence - max(rest, default=0.0)


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy in nats over the last dimension; zero probabilities count nothing."""
    values: Tensor = torch.special.entr(probabilities).sum(-1)
    return values


def summarise(options: tuple[str, ...], probabilities: Tensor, *, samples: int) -> Predictive:
    """The predictive of sampled distributions `probabilities` [max(S, 1), C] over `options`.

    What a row lacks to one belongs to outcomes that are not listed and counts as one more outcome in the entropies.
    `samples` is S; with S = 0 the single row is the noise-free distribution and nothing is known of its spread.
    """
    p = probabilities.double()
    mean = p.mean(0)
    n = p.shape[0]
    std = p.std(0, unbiased=True) if n > 1 else torch.zeros_like(mean)
    outcomes = torch.cat([p, (1 - p.sum(-1, keepdim=True)).clamp_min(0)], -1)
    total, expected = float(entropy(outcomes.mean(0))), float(entropy(outcomes).mean())
    information = max(0.0, total - expected) * n / (n - 1) if n > 1 else 0.0
    standard_error = float(std[mean.argmax()]) / math.sqrt(n)
    return Predictive(
        options=options,
        probabilities=tuple(mean.tolist()),
        stds=tuple(std.tolist()),
        uncertainty=Uncertainty(total, expected, information, standard_error),
        samples=samples,
    )
