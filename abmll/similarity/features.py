"""The features of a prompt, which the Gaussian process beside the adapter sees: trunk states and an embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from abmll.similarity.sentence_encoder import SentenceEncoder


@dataclass(frozen=True)
class Whitening:
    """A map of mean states [d], (m - `mean`) @ `map`: those of the training tasks' inputs get mean 0 and about covariance I.

    Mean states of any two texts are nearly parallel, and differ most in what has nothing to do with meaning, such as length;
    whitened, their angles go with likeness (Su et al. 2021, https://arxiv.org/abs/2103.15316).
    """

    mean: Tensor
    map: Tensor

    @classmethod
    def of(cls, tasks: Sequence[Tensor], shrinkage: float = 0.1) -> Self:
        """That of mean states [n, d] of several tasks' inputs, each task's mean counting alike.

        `shrinkage`, times the mean variance, is added to every variance: there are more directions than there is data for.
        """
        mean = torch.stack([states.double().mean(0) for states in tasks]).mean(0)
        variances, directions = torch.linalg.eigh(torch.cov((torch.cat(list(tasks)).double() - mean).T))
        scale = (variances.clamp(min=0) + shrinkage * variances.clamp(min=0).mean()).rsqrt()
        return cls(mean.float(), ((directions * scale) @ directions.T).float())

    def __call__(self, states: Tensor) -> Tensor:
        """The whitened mean states [..., d]."""
        return (states - self.mean) @ self.map

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors for a safetensors file."""
        return {"whitening.mean": self.mean.contiguous(), "whitening.map": self.map.contiguous()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self | None:
        """Inverse of `to_tensors`; None where there is none."""
        if "whitening.mean" not in tensors:
            return None
        return cls(tensors["whitening.mean"], tensors["whitening.map"])


def mean_state(hidden: Tensor) -> Tensor:
    """The mean [d] of the trunk's states [tokens, d] of a prompt, in fp32 on the CPU.

    The first token's is left out where there are others: attention parks there what it has no use for, in a state that dwarfs
    the rest.
    """
    return hidden[min(1, len(hidden) - 1) :].float().mean(0).cpu()


@dataclass(frozen=True)
class Features:
    """h of prompts, at unit length: the mean state of its tokens, whitened, and beside it the embedding of its input.

    Both are at unit length, so that the likeness of two prompts, h(x) . h(y), is the mean of two cosines.
    """

    whitening: Whitening | None = None
    encoder: SentenceEncoder | None = None

    def __call__(self, hidden: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
        """h [n, d (+ e)] of n prompts, from the trunk's states [tokens, d] of each and the texts of their inputs."""
        means = torch.stack([mean_state(states) for states in hidden])
        states = normalize(self.whitening(means) if self.whitening else means, dim=-1)
        if self.encoder is None:
            return states
        return torch.cat([states, self.encoder(texts)], dim=-1) / 2**0.5

    def names(self, texts: Sequence[str], size: int) -> Tensor:
        """[n, d (+ e)], `size` columns: multiplied with h(x), the cosine of x and each of n texts; zeros without an encoder."""
        found = torch.zeros(len(texts), size)
        if self.encoder is not None:
            embeddings = self.encoder(texts)
            found[:, size - embeddings.shape[1] :] = embeddings * 2**0.5
        return found
