"""A Gaussian process beside the adapter: what the examples say about an input by how like them it is (docs/method.md 5).

A few gradient steps move the adapter alike for every input, so its samples disagree about an input that is like no example
no more than about one that is. A linear model on frozen features, whose posterior is known in closed form, does:
f_c(x) = <w_c, h(x)> with w_c ~ N(m_c, I), h(x) what `features.py` makes of the prompt, m_c nothing or what the class is called,
and the one-hot labels less the classes' shares as its observations, with variance `noise` (least-squares classification with a
Gaussian process: Rasmussen and Williams 2006, section 6.5; on learned features, Patacchiola et al. 2020). For tasks with fixed
classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from abmll.seeds import SampleSeed, derive_seed
from abmll.similarity.features import Features
from abmll.text.prompting import EncodedPrompt

# Between these the examples choose: weights, as multiples of the configuration's, and how much a class's name counts.
WEIGHTS = (0.5, 1.0, 2.0, 4.0)
NAMES = (0.0, 1.0)
# Samples spread by this power of the variance of f relative to that at examples left out, and at most so many times as far.
# The power was chosen on validation tasks; the limit is for examples that are all alike.
SHARPNESS = 8
FARTHEST = 4.0


def options_differ(prompts: Sequence[EncodedPrompt]) -> bool:
    """Whether the continuations are not the same, in any order, for all prompts."""
    return any(set(prompt.continuations) != set(prompts[0].continuations) for prompt in prompts)


@dataclass(frozen=True)
class Head:
    """Of a support with fixed classes: h of its examples [n, d], their classes' numbers [n], each class's token ids, and what
    h(x) is multiplied with for its likeness to each class's name [C, d].

    `features` tell how h is found; they are not among the tensors.
    """

    states: Tensor
    labels: Tensor
    classes: tuple[tuple[int, ...], ...]
    names: Tensor
    features: Features = field(default_factory=Features)

    @classmethod
    def of(
        cls,
        prompts: Sequence[EncodedPrompt],
        hidden: Sequence[Tensor],
        labels: Sequence[int],
        features: Features,
    ) -> Self | None:
        """That of examples with their trunk states [tokens, d] and the places of their labels; None without fixed classes."""
        classes = prompts[0].continuations
        if len(classes) < 2 or options_differ(prompts):
            return None
        own = [states[: len(prompt.prompt)] for prompt, states in zip(prompts, hidden, strict=True)]
        numbers = [
            classes.index(prompt.continuations[label]) for prompt, label in zip(prompts, labels, strict=True)
        ]
        states = features(own, [prompt.text for prompt in prompts])
        names = features.names(prompts[0].options, states.shape[1])
        return cls(states, torch.tensor(numbers), classes, names, features)

    @property
    def nbytes(self) -> int:
        """Bytes of its states and names."""
        return self.states.nbytes + self.names.nbytes

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors for a safetensors file."""
        longest = max(map(len, self.classes))
        padded = [[*ids, *[-1] * (longest - len(ids))] for ids in self.classes]
        return {
            "head.states": self.states.contiguous(),
            "head.labels": self.labels,
            "head.classes": torch.tensor(padded),
            "head.names": self.names.contiguous(),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self | None:
        """Inverse of `to_tensors`; None where there is none."""
        if "head.states" not in tensors:
            return None
        classes = tuple(tuple(i for i in row if i >= 0) for row in tensors["head.classes"].tolist())
        states = tensors["head.states"]
        names = tensors.get("head.names", states.new_zeros(len(classes), states.shape[1]))
        return cls(states, tensors["head.labels"], classes, names)


class HeadPosterior:
    """The posterior of w given a `head`, in fp64 on the CPU, and what an option's score gets by it.

    By the mean that is a multiple of the mean of f, about `weight`. The examples choose among `WEIGHTS`, and among `NAMES` how
    much of m_c is the class's name: the mean over all pairs, each by the likelihood of every example's label given the others.
    A sample adds the deviation of a draw of f from its mean, times `spread` nats and (v / v')^`SHARPNESS`, where v is the
    variance of f at the input, and v' that at examples given the others, on average. States of many dimensions are never much
    alike, so v lies close below 1 for all inputs, those of another task among them; the power tells them apart.
    """

    def __init__(self, head: Head, weight: float, noise: float, spread: float) -> None:
        self.features, self._noise, self._spread = head.features, noise, spread
        self._number = {ids: number for number, ids in enumerate(head.classes)}
        self._states = head.states.double()
        one_hot = torch.nn.functional.one_hot(head.labels, len(head.classes)).double()
        shares = (one_hot.sum(0) + 1) / (len(one_hot) + len(head.classes))
        self._observed = one_hot - shares
        gram = self._states @ self._states.T
        self._inverse: Tensor = torch.linalg.inv(gram + noise * torch.eye(len(gram), dtype=gram.dtype))
        names = head.names.double()
        self._mean = self._averaged(weight, one_hot, (names - names.mean(0)).T)
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
        generator = torch.Generator().manual_seed(derive_seed(sample.seed, "head"))
        size, classes = self._states.shape[1], self._observed.shape[1]
        prior = sample.flip * torch.randn(size, classes, generator=generator).double()
        error = sample.flip * torch.randn(self._observed.shape, generator=generator).double()
        left = self._states @ prior + self._noise**0.5 * error
        deviation: Tensor = prior - self._states.T @ self._inverse @ left
        return deviation
