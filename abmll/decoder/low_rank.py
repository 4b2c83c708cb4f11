"""Frozen layer plus low-rank adapters over packed tokens, where segments have different adapters.

A segment is a block of consecutive tokens. The frozen product is one for all tokens, whichever
adapters they use. B A x is added in the way that measurements found the fastest: one product for a
single adapter, one batched product for segments of equal length, and otherwise a loop. Where all
segments are long, adding B A to the weight once costs less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from abmll.decoder.quantised import FrozenLinear
from abmll.decoder.ragged import Ragged

# Fewest tokens of a segment for which the update is added to the weight, on the CPU in fp32. The
# time was measured with rank 44, as a multiple of that of the frozen product alone: with 256 tokens
# 1.24 merged and 1.14 apart, with 512 tokens 1.12 and 1.16, with 2048 tokens 1.04 and 1.16. In bf16
# the update would be lost in the rounding of the sum.
MERGE_FROM_TOKENS = 512


@dataclass(frozen=True)
class Segments:
    """Blocks of consecutive tokens: block i has `lengths[i]` tokens and adapter `index[i]`."""

    index: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, index_of_row: Sequence[int], row_tokens: Sequence[int]) -> Self:
        """Return the blocks of rows. Neighbours with the same index are one block."""
        pairs = zip(index_of_row, row_tokens, strict=True)
        joined = [
            (index, sum(n for _, n in rows)) for index, rows in groupby(pairs, key=lambda pair: pair[0])
        ]
        return cls(tuple(i for i, _ in joined), tuple(n for _, n in joined))

    def slices(self) -> list[tuple[int, slice]]:
        """Return the adapter and the span of tokens of each block."""
        start, blocks = 0, []
        for index, length in zip(self.index, self.lengths, strict=True):
            blocks.append((index, slice(start, start + length)))
            start += length
        return blocks

    @property
    def in_order(self) -> bool:
        """Return whether blocks have equal lengths and the adapters 0, 1, 2, ... in this order."""
        return len(set(self.lengths)) == 1 and self.index == tuple(range(len(self.index)))


def add_loras(x: Tensor, layer: FrozenLinear, a: Tensor, b: Tensor, segments: Segments) -> Tensor:
    """Return W x + B A x [N, d_out] for `x` [N, d_in], with the adapters of `segments`.

    The adapters are `a` [G, R, d_in] and `b` [G, d_out, R]. The result has no gradient for them;
    training uses `SignedLoras`.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and min(segments.lengths) >= MERGE_FROM_TOKENS:
        return _merged(x, layer, a, b, segments)
    y: Tensor = layer(x)
    if len(segments.index) == 1:
        i = segments.index[0]
        y.addmm_(x @ a[i].T, b[i].T)
        return y
    if segments.in_order and len(a) == len(segments.index):
        blocks = x.view(len(a), -1, x.shape[-1])
        y.view(len(a), -1, y.shape[-1]).baddbmm_(torch.bmm(blocks, a.mT), b.mT)
        return y
    for i, block in segments.slices():
        y[block].addmm_(x[block] @ a[i].T, b[i].T)
    return y


def _merged(x: Tensor, layer: FrozenLinear, a: Tensor, b: Tensor, segments: Segments) -> Tensor:
    weight = layer.weight(x.dtype)
    y = x.new_empty(len(x), layer.out_features)
    own = torch.empty_like(weight)
    for i, block in segments.slices():
        torch.addmm(weight, b[i], a[i], out=own)
        if layer.bias is None:
            torch.mm(x[block], own.T, out=y[block])
        else:
            torch.addmm(layer.bias, x[block], own.T, out=y[block])
    return y


class SignedLoras(torch.autograd.Function):
    """W x + B A x + u * (B~ A~ (v * x)), differentiable in x and in the four stacks, with W frozen.

    `x` [N, d_in] are the tokens of R rows. The stacks are by task: a [T, r, d_in], noise_a
    [T, r + 1, d_in], and transposed b [T, r, d_out], noise_b [T, r + 1, d_out]. `task` [R] and the
    signs v [R, d_in] and u [R, d_out] are by row. The signs are multiplied into the factors, so
    each row has one pair of factors of width 2 r + 1. Only x and products of that width are kept
    for the backward pass, where a quantised W is made dense again.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: FrozenLinear, rows: Ragged, task: Tensor, v: Tensor, u: Tensor,
        a: Tensor, noise_a: Tensor, b: Tensor, noise_b: Tensor,
    ) -> Tensor:  # fmt: skip
        """Return the layer's output [N, d_out]."""
        y = linear(x, layer.weight(x.dtype), layer.bias)
        inner = rows.project(x, _row_factors(task, a, noise_a, v))
        rows.add_back(y, inner, _row_factors(task, b, noise_b, u))
        ctx.layer, ctx.rows = layer, rows
        ctx.save_for_backward(x, task, v, u, a, noise_a, b, noise_b, *inner)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the stacks."""
        x, task, v, u, a, noise_a, b, noise_b, *inner = ctx.saved_tensors
        dy, rows, rank = gradients[0], ctx.rows, a.shape[1]
        d_inner = rows.project(dy, _row_factors(task, b, noise_b, u))
        d_up, d_down = rows.outer(inner, dy), rows.outer(d_inner, x)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy @ ctx.layer.weight(dy.dtype)
            rows.add_back(dx, d_inner, _row_factors(task, a, noise_a, v))
        parts = (
            (a, d_down[:, :rank]),
            (noise_a, d_down[:, rank:].mul_(v[:, None])),
            (b, d_up[:, :rank]),
            (noise_b, d_up[:, rank:].mul_(u[:, None])),
        )
        by_task = (_sum_by_task(part, task, len(stack)) for stack, part in parts)
        return dx, None, None, None, None, None, *by_task


def _sum_by_task(rows: Tensor, task: Tensor, tasks: int) -> Tensor:
    """Return [T, ...], the sums of `rows` [R, ...] by `task` [R], added in fp32."""
    if tasks == 1:  # eight times as fast as adding row by row on the CPU
        return rows.sum(0, keepdim=True)
    sums = rows.new_zeros(tasks, *rows.shape[1:], dtype=torch.float32)
    return sums.index_add_(0, task, rows.float()).to(rows.dtype)


def _row_factors(task: Tensor, mean: Tensor, noise: Tensor, signs: Tensor) -> Tensor:
    """Return the factors [R, 2 r + 1, d] of every row.

    They are the mean factors [r, d], then the noise factors [r + 1, d] times the row's signs.
    """
    rank, width = mean.shape[1], mean.shape[1] + noise.shape[1]
    factors = mean.new_empty(len(task), width, mean.shape[-1])
    factors[:, :rank] = pick(mean, task)
    torch.mul(pick(noise, task), signs[:, None], out=factors[:, rank:])
    return factors


def pick(tensors: Tensor, index: Tensor) -> Tensor:
    """Return `tensors[index]`, without a copy where `tensors` is only one."""
    return tensors.expand(len(index), *tensors.shape[1:]) if len(tensors) == 1 else tensors[index]
