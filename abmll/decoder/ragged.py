"""Low-rank products over packed rows, each row with a factor of its own: by row on a CPU, padded and batched on a GPU.

A CPU is held up by memory: row by row, what one product writes is still in the cache when the next reads it, and nothing
is computed for padding. A GPU is held up by launches: there all rows are one batched product.
The narrow dimension K comes first, [K, n]: on the CPU three to five times as fast as [n, K].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Ragged(Protocol):
    """R rows of packed tokens [N, d], and factors [R, K, d]; a product of both, `inner`, is whatever suits the device."""

    def project(self, tokens: Tensor, factors: Tensor) -> Sequence[Tensor]:
        """`inner`: factor_i tokens_i^T, a [K, n_i] for each row."""

    def add_back(self, out: Tensor, inner: Sequence[Tensor], factors: Tensor) -> None:
        """Add inner_i^T factor_i to every row of `out` [N, d], in place."""

    def outer(self, inner: Sequence[Tensor], tokens: Tensor) -> Tensor:
        """inner_i tokens_i [R, K, d]."""


class ByRow:
    """One product for each row."""

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
    """All rows in one batched product, padded with zeros to the longest."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        longest = max(lengths)
        places = [torch.arange(n) + row * longest for row, n in enumerate(lengths)]
        self._shape, self._place_of = (len(lengths), longest), torch.cat(places).to(device)

    def project(self, tokens: Tensor, factors: Tensor) -> Sequence[Tensor]:
        """See `Ragged`; one tensor [R, K, longest]."""
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
    """The way that suits the device."""
    return ByRow(lengths) if device.type == "cpu" else Padded(lengths, device)
