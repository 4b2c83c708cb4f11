"""A Gaussian process beside the adapter: what the examples say about an input by how like them it is (docs/method.md 5).

A few gradient steps move the adapter alike for every input, so its samples disagree about an input that is like no example
no more than about one that is. A linear model on frozen features, whose posterior is known in closed form, does:
f_c(x) = <w_c, h(x)> with w_c ~ N(m_c, I), h(x) what `features.py` makes of the prompt, m_c nothing or what the class is called,
and the one-hot labels less the classes' shares as its observations, with variance `noise` (least-squares classification with a
Gaussian process: Rasmussen and Williams 2006, section 6.5; on learned features, Patacchiola et al. 2020). For tasks with fixed
classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.seeds import SampleSeed, derive_seed
from abmll.similarity.class_examples import ClassExamples
from abmll.text.prompting import EncodedPrompt

# Between these the examples choose: weights, as multiples of the configuration's, and how much a class's name counts.
WEIGHTS = (0.5, 1.0, 2.0, 4.0)
NAMES = (0.0, 1.0)
# Samples spread by this power of the variance of f relative to that at examples left out, and at most so many times as far.
# The power was chosen on validation tasks; the limit is for examples that are all alike.
SHARPNESS = 8
FARTHEST = 4.0


@dataclass(frozen=True)
class SimilarityConfig:
    """How much the Gaussian process counts beside the adapter; calibrated after training, unknown to adaptation.

    `weight` is what multiplies its mean. `noise` is the variance of its observations. `spread` is in nats: how far samples lie
    about the mean. `sentence_encoder` names an encoder whose embeddings it sees beside the states of the trunk, if any.
    """

    weight: float = 4.0
    noise: float = 0.5
    spread: float = 0.5
    sentence_encoder: str | None = None


class GaussianProcess:
    """The posterior of w given some examples, in fp64 on the CPU, and what an option's score gets by it.

    By the mean that is a multiple of the mean of f, about `weight`. The examples choose among `WEIGHTS`, and among `NAMES` how
    much of m_c is the class's name: the mean over all pairs, each by the likelihood of every example's label given the others.
    A sample adds the deviation of a draw of f from its mean, times `spread` nats and (v / v')^`SHARPNESS`, where v is the
    variance of f at the input, and v' that at examples given the others, on average. States of many dimensions are never much
    alike, so v lies close below 1 for all inputs, those of another task among them; the power tells them apart.
    """

    def __init__(self, examples: ClassExamples, config: SimilarityConfig) -> None:
        noise = config.noise
        self._noise, self._spread = noise, config.spread
        self._number = {ids: number for number, ids in enumerate(examples.classes)}
        self._states = examples.features.double()
        one_hot = torch.nn.functional.one_hot(examples.labels, len(examples.classes)).double()
        shares = (one_hot.sum(0) + 1) / (len(one_hot) + len(examples.classes))
        self._observed = one_hot - shares
        gram = self._states @ self._states.T
        self._inverse: Tensor = torch.linalg.inv(gram + noise * torch.eye(len(gram), dtype=gram.dtype))
        names = examples.names.double()
        self._mean = self._averaged(config.weight, one_hot, (names - names.mean(0)).T)
        self._left_out_variance = float((1 / self._inverse.diagonal() - noise).mean())
        self._drawn: dict[SampleSeed, Tensor] = {}

    def scores(self, prompt: EncodedPrompt, state: Tensor, sample: SampleSeed | None) -> Tensor:
        """What the continuations of a prompt with h = `state` get under a sample, or by the mean (None).

        That is nothing if any of them is no class.
        """
        numbers = [self._number[ids] for ids in prompt.continuations if ids in self._number]
        if len(numbers) < len(prompt.continuations):
            return state.new_zeros(len(prompt.continuations))
        scores = state.double() @ self._mean
        if sample is not None:
            if sample not in self._drawn:
                self._drawn[sample] = self._deviation(sample)
            scores = scores + self._spread_at(state.double()) * (state.double() @ self._drawn[sample])
        return scores[numbers].float()

    def typicality(self, state: Tensor) -> float:
        """Of the examples and an input with h = `state`, the share as far from the others as the input is, itself counted.

        How far is the variance of f given the others. For an input drawn as the examples were it is a p-value: at most a share p
        of them has p or less (conformal anomaly detection: Laxhammar and Falkman 2010; Vovk et al. 2005, 2.2). It cannot be
        less than 1 / (n + 1).
        """
        variance, solved = self._variance(state.double())
        own = variance + self._noise
        # With the input as one more row and column, by the inverse of a bordered matrix; a variance is 1 over its diagonal.
        others = 1 / (self._inverse.diagonal() + solved.square() / own)
        return (int((others >= own * (1 - 1e-6)).sum()) + 1) / (len(others) + 1)

    def _averaged(self, weight: float, one_hot: Tensor, names: Tensor) -> Tensor:
        """[d, C], by which h(x) becomes scores: the mean over weights and shares of the `names` [d, C] in m.

        Each counts by its likelihood of the labels [n, C] left out one at a time (Rasmussen and Williams 2006, 5.12).
        """
        shares = (
            one_hot.sum(0) - one_hot + 1
        ).log()  # of the others, smoothed; the sum that they lack is the same for all
        likelihoods, found = [], []
        for name in NAMES:
            solved = self._inverse @ (self._observed - name * self._states @ names)
            left_out = self._observed - solved / self._inverse.diagonal()[:, None]
            for multiple in WEIGHTS:
                scores = shares + weight * multiple * left_out
                likelihoods.append((scores.log_softmax(-1) * one_hot).sum())
                found.append(weight * multiple * (name * names + self._states.T @ solved))
        return torch.einsum("k,kdc->dc", torch.stack(likelihoods).softmax(0), torch.stack(found))

    def _spread_at(self, state: Tensor) -> float:
        """Nats by which a unit of deviation moves a score there."""
        variance = self._variance(state)[0] / self._left_out_variance
        return self._spread * min(FARTHEST, float(variance) ** SHARPNESS)

    def _variance(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """That of f there, and (K + noise I)^-1 k [n], with k what the state has in common with the examples."""
        k = self._states @ state
        solved = self._inverse @ k
        return state @ state - k @ solved, solved

    def _deviation(self, sample: SampleSeed) -> Tensor:
        """[d, C]: a draw of w less its mean: one from the prior, corrected by what the examples say (Matheron's rule)."""
        # The name of this stream stays what it was when samples were first served: others would be other answers.
        generator = torch.Generator().manual_seed(derive_seed(sample.seed, "head"))
        size, classes = self._states.shape[1], self._observed.shape[1]
        prior = sample.flip * torch.randn(size, classes, generator=generator).double()
        error = sample.flip * torch.randn(self._observed.shape, generator=generator).double()
        left = self._states @ prior + self._noise**0.5 * error
        deviation: Tensor = prior - self._states.T @ self._inverse @ left
        return deviation
