"""Low-rank products over packed rows, where each row has its own factor.

On a CPU, the limit is the memory: row by row, the output of one product is still in the cache when
the next product reads it, and nothing is computed for padding. On a GPU, the limit is the number of
kernels: there, all rows are one batched product with padding. The narrow dimension K comes first,
[K, n], which on the CPU is three to five times as fast as [n, K].

With AMX, a small product takes as long as a larger one. There, neighbouring short rows are one
product with the factors of all of them, of which each row keeps its own part.
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


# Most tokens of short rows that are one product with AMX. On one core, an adaptation to 16 examples
# of `emotion` (25 tokens each) takes 2.2 s so, and 2.6 s row by row.
TOGETHER_WITH_AMX = 256


class Blocks:
    """Products by block of neighbouring rows, of at most `together` tokens or of one row.

    `inner` is a matrix [rows of the block x K, tokens of the block] for each block, which is zero
    where a factor is that of another row.
    """

    def __init__(self, lengths: Sequence[int], together: int) -> None:
        self._rows: list[list[int]] = []
        for length in lengths:
            if self._rows and sum(self._rows[-1]) + length <= together:
                self._rows[-1].append(length)
            else:
                self._rows.append([length])
        self._tokens = [sum(rows) for rows in self._rows]
        self._own: list[Tensor] = []

    def project(self, tokens: Tensor, factors: Tensor) -> Sequence[Tensor]:
        """See `Ragged`."""
        if not self._own:  # which factor is whose row's, of each block
            ones = [[factors.new_ones(factors.shape[1], n) for n in rows] for rows in self._rows]
            self._own = [torch.block_diag(*of_block).to(factors.dtype) for of_block in ones]
        of_blocks = zip(self._joined(factors), tokens.split(self._tokens), self._own, strict=True)
        return [(f @ t.T).mul_(own) for f, t, own in of_blocks]

    def add_back(self, out: Tensor, inner: Sequence[Tensor], factors: Tensor) -> None:
        """See `Ragged`."""
        of_blocks = zip(out.split(self._tokens), inner, self._joined(factors), strict=True)
        for block, i, f in of_blocks:
            block.addmm_(i.T, f)

    def outer(self, inner: Sequence[Tensor], tokens: Tensor) -> Tensor:
        """See `Ragged`."""
        width = len(inner[0]) // len(self._rows[0])
        sizes = [len(i) for i in inner]
        found = tokens.new_empty(sum(sizes), tokens.shape[-1])
        of_blocks = zip(inner, tokens.split(self._tokens), found.split(sizes), strict=True)
        for i, block, out in of_blocks:
            torch.mm(i, block, out=out)
        return found.view(-1, width, tokens.shape[-1])

    def _joined(self, factors: Tensor) -> list[Tensor]:
        return [f.flatten(0, 1) for f in factors.split([len(rows) for rows in self._rows])]


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


def ragged(lengths: Sequence[int], device: torch.device, dtype: torch.dtype) -> Ragged:
    """Return the fastest way on `device` for tokens of this dtype."""
    if device.type != "cpu":
        return Padded(lengths, device)
    if dtype == torch.bfloat16 and torch.cpu.get_capabilities().get("amx_bf16"):
        return Blocks(lengths, TOGETHER_WITH_AMX)
    return ByRow(lengths)
