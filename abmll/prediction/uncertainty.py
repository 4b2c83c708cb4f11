"""An answer and its uncertainty, from Monte Carlo samples of option probabilities.

Entropies are in nats. Let p_n be the distribution under sample n of S, and p = mean_n p_n. The
total entropy H[p] is the expected entropy mean_n H[p_n] plus the mutual information of answer and
weights. The plug-in mutual information is biased low, because the mean of few samples is noisy. The
jackknife over independent blocks of samples removes that bias to first order. An antithetic pair is
one block, because its two samples are not independent.

A temperature T acts on the average, as p^(1/T) normalised: pool, then calibrate (Rahaman and Thiery
2021). Probabilities, stds, confidence and its standard error are at T. The entropies are of the
samples as they are, so that they still add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Uncertainty:
    """Entropies in nats, and the error of the top option's probability.

    `mc_standard_error` is the Monte Carlo standard error of that probability, over the samples.
    """

    total_entropy: float
    expected_entropy: float
    mutual_information: float
    mc_standard_error: float


@dataclass(frozen=True)
class Predictive:
    """The predictive over `options`: S sampled distributions, averaged in probability space.

    `probabilities` and `stds` follow `options`, both at the temperature. `stds` are over samples,
    and 0 where there are fewer than two. `samples` is S, or 0 for the mean only.
    """

    options: tuple[str, ...]
    probabilities: tuple[float, ...]
    stds: tuple[float, ...]
    uncertainty: Uncertainty
    samples: int

    @property
    def top(self) -> int:
        """Return the index of the most probable option, the first of several equal ones."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)

    @property
    def answer(self) -> str:
        """Return the most probable option."""
        return self.options[self.top]

    @property
    def confidence(self) -> float:
        """Return the probability of the answer."""
        return self.probabilities[self.top]

    @property
    def margin(self) -> float:
        """Return the probability of the answer minus that of the second option."""
        rest = [p for i, p in enumerate(self.probabilities) if i != self.top]
        return self.confidence - max(rest, default=0.0)


def entropy(probabilities: Tensor) -> Tensor:
    """Return the Shannon entropy in nats over the last dimension; a zero counts as 0 log 0 = 0."""
    values: Tensor = torch.special.entr(probabilities).sum(-1)
    return values


def blocks_of(samples: Tensor, *, paired: bool) -> Tensor:
    """Return the means [K, C] of independent blocks of `samples` [S, C].

    A block is a pair where `paired` and S is even and at least 4, else a single sample.
    """
    if paired and len(samples) >= 4 and len(samples) % 2 == 0:
        pairs: Tensor = samples.unflatten(0, (-1, 2)).mean(1)
        return pairs
    return samples


def tempered(probabilities: Tensor, temperature: float) -> Tensor:
    """Return `probabilities` [..., C] to the power 1 / `temperature`, normalised.

    Each row must sum to one. Zeros stay zero.
    """
    if temperature == 1:
        return probabilities
    return (probabilities.log() / temperature).softmax(-1)


def pooled_values(samples: Tensor, temperature: float, *, paired: bool) -> Tensor:
    """Return jackknife pseudo-values [K, C] of the tempered average of `samples` [S, C].

    There is one for each block, and their spread gives the error of the average. At a temperature
    of 1 they are the blocks themselves.
    """
    blocks = blocks_of(samples, paired=paired)
    count = len(blocks)
    if temperature == 1 or count < 2:
        return tempered(blocks, temperature)
    without = (blocks.sum(0) - blocks) / (count - 1)
    whole = tempered(blocks.mean(0), temperature)
    values: Tensor = count * whole - (count - 1) * tempered(without, temperature)
    return values


def jackknife_information(outcomes: Tensor, *, paired: bool) -> tuple[float, float]:
    """Return mutual information of sampled distributions [S, C] and its standard error, in nats.

    The jackknife over K blocks corrects the bias: K I - (K - 1) mean_k I_(-k), where I_(-k) leaves
    block k out. With one sample both are 0.
    """
    if len(outcomes) < 2:
        return 0.0, 0.0
    blocks = blocks_of(outcomes, paired=paired)
    size = len(outcomes) // len(blocks)
    inner = entropy(outcomes).unflatten(0, (-1, size)).mean(1)  # [K]
    count = len(blocks)
    without = (blocks.sum(0) - blocks) / (count - 1)
    left_out = entropy(without) - (inner.sum() - inner) / (count - 1)
    plug_in = entropy(blocks.mean(0)) - inner.mean()
    corrected = count * plug_in - (count - 1) * left_out.mean()
    variance = (count - 1) / count * (left_out - left_out.mean()).square().sum()
    return max(0.0, float(corrected)), math.sqrt(float(variance))


def summarise(
    options: tuple[str, ...],
    probabilities: Tensor,
    *,
    samples: int,
    paired: bool = False,
    temperature: float = 1.0,
) -> Predictive:
    """Return the predictive of sampled distributions `probabilities` [max(S, 1), C] over `options`.

    Where a row sums to less than one, the rest counts as one more outcome in the entropies.
    `samples` is S; with S = 0 the single row is the distribution of the mean, and nothing is known
    of its spread. `paired` says that samples 2k and 2k + 1 are antithetic: the standard error is
    then over pairs. A `temperature` other than 1 is for rows that sum to one.
    """
    p = probabilities.double()
    mean = tempered(p.mean(0), temperature)
    n = p.shape[0]
    std = tempered(p, temperature).std(0, unbiased=True) if n > 1 else torch.zeros_like(mean)
    outcomes = torch.cat([p, (1 - p.sum(-1, keepdim=True)).clamp_min(0)], -1)
    total, expected = float(entropy(outcomes.mean(0))), float(entropy(outcomes).mean())
    information, _ = jackknife_information(outcomes, paired=paired)
    top = pooled_values(p, temperature, paired=paired)[:, int(mean.argmax())]
    standard_error = float(top.std(unbiased=True)) / math.sqrt(len(top)) if n > 1 else 0.0
    return Predictive(
        options=options,
        probabilities=tuple(mean.tolist()),
        stds=tuple(std.tolist()),
        uncertainty=Uncertainty(total, expected, information, standard_error),
        samples=samples,
    )
