"""A Gaussian process beside the adapter: what the examples say about an input by how like them it is (docs/method.md 5).

A few gradient steps move the adapter alike for every input, so its samples disagree about an input that is like no example
no more than about one that is. A linear model on the frozen trunk's states, whose posterior is known in closed form,
does: f_c(x) = <w_c, h(x)> with w_c ~ N(0, I), h(x) the mean state of the prompt's tokens at unit length, and the one-hot labels
less the classes' shares as its observations, with variance `noise` (least-squares classification with a Gaussian process:
Rasmussen and Williams 2006, section 6.5; on learned features, Patacchiola et al. 2020). For tasks with fixed classes alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from abmll.prompting import EncodedPrompt
from abmll.seeds import SampleSeed, derive_seed


def prompt_state(hidden: Tensor) -> Tensor:
    """h [d] in fp32 on the CPU, from the trunk's states [tokens, d] of a prompt.

    The first token's is left out where there are others: attention parks there what it has no use for, in a state that dwarfs
    the rest.
    """
    mean = hidden[min(1, len(hidden) - 1) :].float().mean(0)
    return torch.nn.functional.normalize(mean, dim=0).cpu()


def options_differ(prompts: Sequence[EncodedPrompt]) -> bool:
    """Whether the continuations are not the same, in any order, for all prompts."""
    return any(set(prompt.continuations) != set(prompts[0].continuations) for prompt in prompts)


@dataclass(frozen=True)
class Head:
    """Of a support with fixed classes: h of its examples [n, d], their classes' numbers [n], and each class's token ids."""

    states: Tensor
    labels: Tensor
    classes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls, prompts: Sequence[EncodedPrompt], hidden: Sequence[Tensor], labels: Sequence[int]
    ) -> Self | None:
        """That of examples with their trunk states [tokens, d] and the places of their labels; None without fixed classes."""
        classes = prompts[0].continuations
        if len(classes) < 2 or options_differ(prompts):
            return None
        states = [
            prompt_state(states[: len(prompt.prompt)]) for prompt, states in zip(prompts, hidden, strict=True)
        ]
        numbers = [
            classes.index(prompt.continuations[label]) for prompt, label in zip(prompts, labels, strict=True)
        ]
        return cls(torch.stack(states), torch.tensor(numbers), classes)

    @property
    def nbytes(self) -> int:
        """Bytes of its states."""
        return self.states.nbytes

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors for a safetensors file."""
        longest = max(map(len, self.classes))
        padded = [[*ids, *[-1] * (longest - len(ids))] for ids in self.classes]
        return {
            "head.states": self.states.contiguous(),
            "head.labels": self.labels,
            "head.classes": torch.tensor(padded),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self | None:
        """Inverse of `to_tensors`; None where there is none."""
        if "head.states" not in tensors:
            return None
        classes = tuple(tuple(i for i in row if i >= 0) for row in tensors["head.classes"].tolist())
        return cls(tensors["head.states"], tensors["head.labels"], classes)


class HeadPosterior:
    """The posterior of w given a `head`, in fp64 on the CPU; `weight` times f is what an option's score gets."""

    def __init__(self, head: Head, weight: float, noise: float) -> None:
        self._number = {ids: number for number, ids in enumerate(head.classes)}
        self._states, self._weight, self._noise = head.states.double(), weight, noise
        one_hot = torch.nn.functional.one_hot(head.labels, len(head.classes)).double()
        shares = (one_hot.sum(0) + 1) / (len(one_hot) + len(head.classes))
        self._observed = one_hot - shares
        gram = self._states @ self._states.T
        self._factor = torch.linalg.cholesky(gram + noise * torch.eye(len(gram), dtype=gram.dtype))
        self._drawn: dict[SampleSeed | None, Tensor] = {}

    def scores(self, prompt: EncodedPrompt, state: Tensor, sample: SampleSeed | None) -> Tensor:
        """What the continuations of a prompt with h = `state` get under a sample, or by the mean (None).

        That is nothing if any of them is no class.
        """
        numbers = [self._number[ids] for ids in prompt.continuations if ids in self._number]
        if len(numbers) < len(prompt.continuations):
            return state.new_zeros(len(prompt.continuations))
        if sample not in self._drawn:
            self._drawn[sample] = self._weights(sample)
        return (self._drawn[sample] @ state.double())[numbers].float()

    def _weights(self, sample: SampleSeed | None) -> Tensor:
        """[C, d]: the posterior's mean, or a draw from the prior, corrected by what the examples say (Matheron's rule)."""
        prior = self._states.new_zeros(self._states.shape[1], self._observed.shape[1])
        left = self._observed
        if sample is not None:
            generator = torch.Generator().manual_seed(derive_seed(sample.seed, "head"))
            prior = sample.flip * torch.randn(prior.shape, generator=generator).double()
            error = sample.flip * torch.randn(left.shape, generator=generator).double()
            left = left - self._states @ prior - self._noise**0.5 * error
        return self._weight * (prior + self._states.T @ torch.cholesky_solve(left, self._factor)).T
