"""Low-rank products over packed rows, where each row has its own factor.

On a CPU, the limit is the memory: row by row, the output of one product is still in the cache when
the next product reads it, and nothing is computed for padding. On a GPU, the limit is the number of
kernels: there, all rows are one batched product with padding. The narrow dimension K comes first,
[K, n], which on the CPU is three to five times as fast as [n, K].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Ragged(Protocol):
    """Products of R rows of packed tokens [N, d] with factors [R, K, d].

    The form of `inner`, the product of both, depends on the class.
    """

    def project(self, tokens: Tensor, factors: Tensor) -> Sequence[Tensor]:
        """Return `inner`: factor_i tokens_i^T [K, n_i] for each row i."""

    def add_back(self, out: Tensor, inner: Sequence[Tensor], factors: Tensor) -> None:
        """Add inner_i^T factor_i to row i of `out` [N, d], in place."""

    def outer(self, inner: Sequence[Tensor], tokens: Tensor) -> Tensor:
        """Return inner_i tokens_i for all rows, [R, K, d]."""


class ByRow:
    """Products row by row."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = list(lengths)

    def project(self, tokens: Tensor, factors: Tensor) -> Sequence[Tensor]:
        """See `Ragged`."""
        return [f @ t.T for f, t in zip(factors, tokens.split(self._lengths), strict=True)]

    def add_back(self, out: Tensor, inner: Sequence[Tensor], factors: Tensor) -> None:
        """See `Ragged`."""
        for row, i, f in zip(out.split(self._lengths), inner, factors, strict=True):
            row.addmm_(i.T, f)

    def outer(self, inner: Sequence[Tensor], tokens: Tensor) -> Tensor:
        """See `Ragged`."""
        found = tokens.new_empty(len(inner), len(inner[0]), tokens.shape[-1])
        for i, row, out in zip(inner, tokens.split(self._lengths), found, strict=True):
            torch.mm(i, row, out=out)
        return found


class Padded:
    """One batched product of all rows, padded with zeros to the longest."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        longest = max(lengths)
        places = [torch.arange(n) + row * longest for row, n in enumerate(lengths)]
        self._shape, self._place_of = (len(lengths), longest), torch.cat(places).to(device)

    def project(self, tokens: Tensor, factors: Tensor) -> Sequence[Tensor]:
        """See `Ragged`. The result is one tensor [R, K, longest]."""
        return [torch.bmm(factors, self._pad(tokens).mT)]

    def add_back(self, out: Tensor, inner: Sequence[Tensor], factors: Tensor) -> None:
        """See `Ragged`."""
        out += torch.bmm(inner[0].mT, factors).flatten(0, 1).index_select(0, self._place_of)

    def outer(self, inner: Sequence[Tensor], tokens: Tensor) -> Tensor:
        """See `Ragged`."""
        return torch.bmm(inner[0], self._pad(tokens))

    def _pad(self, tokens: Tensor) -> Tensor:
        rows, longest = self._shape
        padded = tokens.new_zeros(rows * longest, tokens.shape[-1]).index_copy_(0, self._place_of, tokens)
        return padded.view(rows, longest, -1)


def ragged(lengths: Sequence[int], device: torch.device) -> Ragged:
    """Return the faster way on `device`."""
    return ByRow(lengths) if device.type == "cpu" else Padded(lengths, device)
