"""Frozen layer plus low-rank adapters over packed tokens: consecutive segments of tokens use different adapters.

The frozen product is one for all tokens whatever adapters they use. Three ways to add B A x, the cheapest by measurement:
one product for a single adapter, a batched one for segments of equal length, a loop otherwise. Where a segment is long
enough, adding B A to the weight once costs less than passing every token through the low-rank path.
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

# On the CPU in fp32, from how many tokens of one sample on it is cheaper to add its update (rank 44) to the weight: measured over
# the base product alone, 256 tokens 1.24 merged and 1.14 apart, 512 1.12 and 1.16, 2048 1.04 and 1.16. In bf16 the
# sum would round the update away.
MERGE_FROM_TOKENS = 512


@dataclass(frozen=True)
class Segments:
    """Consecutive blocks of tokens: block i has `lengths[i]` tokens and uses adapter `index[i]`."""

    index: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, index_of_row: Sequence[int], row_tokens: Sequence[int]) -> Self:
        """The blocks of rows, neighbours with the same index joined."""
        pairs = zip(index_of_row, row_tokens, strict=True)
        joined = [
            (index, sum(n for _, n in rows)) for index, rows in groupby(pairs, key=lambda pair: pair[0])
        ]
        return cls(tuple(i for i, _ in joined), tuple(n for _, n in joined))

    def slices(self) -> list[tuple[int, slice]]:
        """Each block's adapter and its tokens."""
        start, blocks = 0, []
        for index, length in zip(self.index, self.lengths, strict=True):
            blocks.append((index, slice(start, start + length)))
            start += length
        return blocks

    @property
    def in_order(self) -> bool:
        """Whether blocks are of equal length and use adapters 0, 1, 2, ... in turn."""
        return len(set(self.lengths)) == 1 and self.index == tuple(range(len(self.index)))


def add_loras(x: Tensor, layer: FrozenLinear, a: Tensor, b: Tensor, segments: Segments) -> Tensor:
    """W x + B A x [N, d_out], each segment of `x` [N, d_in] with its own of `a` [G, R, d_in] and `b` [G, d_out, R].

    Not differentiable: what is learnt goes through `SignedLoras`.
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

    `x` [N, d_in] in R rows; stacks by task a [T, r, d_in], noise_a [T, r + 1, d_in], and transposed b [T, r, d_out], noise_b
    [T, r + 1, d_out]; `task` [R] and signs v [R, d_in], u [R, d_out] by row. Signs go into the factors, so each row has one
    pair of width 2 r + 1. Only x and products of that width are kept for the backward pass; a quantised W is made dense again.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: FrozenLinear, rows: Ragged, task: Tensor, v: Tensor, u: Tensor,
        a: Tensor, noise_a: Tensor, b: Tensor, noise_b: Tensor,
    ) -> Tensor:  # fmt: skip
        """The layer's output [N, d_out]."""
        y = linear(x, layer.weight(x.dtype), layer.bias)
        inner = rows.project(x, _row_factors(task, a, noise_a, v))
        rows.add_back(y, inner, _row_factors(task, b, noise_b, u))
        ctx.layer, ctx.rows = layer, rows
        ctx.save_for_backward(x, task, v, u, a, noise_a, b, noise_b, *inner)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and of the stacks."""
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
        by_task = (torch.zeros_like(stack).index_add_(0, task, part) for stack, part in parts)
        return dx, None, None, None, None, None, *by_task


def _row_factors(task: Tensor, mean: Tensor, noise: Tensor, signs: Tensor) -> Tensor:
    """[R, 2 r + 1, d]: each row's mean factors [r, d], then its noise factors [r + 1, d] with its signs."""
    rank, width = mean.shape[1], mean.shape[1] + noise.shape[1]
    factors = mean.new_empty(len(task), width, mean.shape[-1])
    factors[:, :rank] = pick(mean, task)
    torch.mul(pick(noise, task), signs[:, None], out=factors[:, rank:])
    return factors


def pick(tensors: Tensor, index: Tensor) -> Tensor:
    """`tensors[index]`, without a copy where there is only one."""
    return tensors.expand(len(index), *tensors.shape[1:]) if len(tensors) == 1 else tensors[index]
