"""Features of a prompt for the Gaussian process: states of the trunk, and an embedding."""

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
    """Whitening of mean states m [d]: (m - `mean`) @ `map`.

    Whitened mean states of the training tasks' inputs have mean 0 and a covariance of about I.
    Without whitening, the mean states of any two texts are nearly parallel, and differ most by what
    is not meaning, such as length. With it, angles say how alike texts are (Su et al. 2021,
    https://arxiv.org/abs/2103.15316).
    """

    mean: Tensor
    map: Tensor

    @classmethod
    def of(cls, tasks: Sequence[Tensor], shrinkage: float = 0.1) -> Self:
        """Return the whitening of the mean states [n, d] of several tasks' inputs.

        The means of all tasks have the same weight. `shrinkage` times the mean variance is added to
        the variance of every direction, because the data are too few for so many directions.
        """
        mean = torch.stack([states.double().mean(0) for states in tasks]).mean(0)
        variances, directions = torch.linalg.eigh(torch.cov((torch.cat(list(tasks)).double() - mean).T))
        scale = (variances.clamp(min=0) + shrinkage * variances.clamp(min=0).mean()).rsqrt()
        return cls(mean.float(), ((directions * scale) @ directions.T).float())

    def __call__(self, states: Tensor) -> Tensor:
        """Return whitened mean states [..., d]."""
        return (states - self.mean) @ self.map

    def to_tensors(self) -> dict[str, Tensor]:
        """Return named tensors for a safetensors file."""
        return {"whitening.mean": self.mean.contiguous(), "whitening.map": self.map.contiguous()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self | None:
        """Read what `to_tensors` returned. Returns None where `tensors` have no whitening."""
        if "whitening.mean" not in tensors:
            return None
        return cls(tensors["whitening.mean"], tensors["whitening.map"])


def mean_state(hidden: Tensor) -> Tensor:
    """Return the mean [d] of a prompt's trunk states [tokens, d], in fp32 on the CPU.

    The first token is left out where there are others. Attention that has nothing to attend to goes
    to it, and its state is much larger than all others.
    """
    return hidden[min(1, len(hidden) - 1) :].float().mean(0).cpu()


@dataclass(frozen=True)
class Features:
    """Features h of prompts: the whitened mean state of a prompt, then the embedding of its input.

    Both parts have the same length, and h has length 1. So the likeness of two prompts,
    h(x) . h(y), is the mean of two cosines. Without a sentence encoder, h is only the first part.
    """

    whitening: Whitening | None = None
    encoder: SentenceEncoder | None = None

    def __call__(self, hidden: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
        """Return h [n, d (+ e)] of n prompts.

        `hidden` are the trunk states [tokens, d] of each, `texts` their inputs.
        """
        means = torch.stack([mean_state(states) for states in hidden])
        states = normalize(self.whitening(means) if self.whitening else means, dim=-1)
        if self.encoder is None:
            return states
        return torch.cat([states, self.encoder(texts)], dim=-1) / 2**0.5

    def names(self, texts: Sequence[str], size: int) -> Tensor:
        """Return a matrix [n, size] whose product with h(x) is the cosine of x and each of n texts.

        `size` is d (+ e). The matrix is zero without a sentence encoder.
        """
        found = torch.zeros(len(texts), size)
        if self.encoder is not None:
            embeddings = self.encoder(texts)
            found[:, size - embeddings.shape[1] :] = embeddings * 2**0.5
        return found
