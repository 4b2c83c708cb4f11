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

from abmll.quantised import FrozenLinear

# On the CPU in fp32, from how many tokens of one sample on it is cheaper to add its update to the weight. In bf16 the
# sum would round the update away.
MERGE_FROM_TOKENS = 1024


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

    `x` [N, d_in]; stacks by task a [T, r, d_in], b [T, d_out, r], noise_a [T, r + 1, d_in], noise_b [T, d_out, r + 1];
    signs by row v [R, d_in], u [R, d_out], `row` [N] naming each token's. Only x and products of width r are kept for the
    backward pass; a quantised W is made dense again there.

    Narrow products are written so that the width r comes first, [r, N]: on the CPU three to five times as fast as [N, r].
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: FrozenLinear, tasks: Segments, v: Tensor, u: Tensor, row: Tensor,
        a: Tensor, b: Tensor, noise_a: Tensor, noise_b: Tensor,
    ) -> Tensor:  # fmt: skip
        """The layer's output [N, d_out]."""
        y = linear(x, layer.weight(x.dtype), layer.bias)
        signed = x * v.index_select(0, row)
        noise = torch.empty_like(y)
        inner, noise_inner = [], []  # [r, tokens of the task]
        for t, block in tasks.slices():
            inner.append(a[t] @ x[block].T)
            y[block].addmm_(inner[-1].T, b[t].T)
            noise_inner.append(noise_a[t] @ signed[block].T)
            torch.mm(noise_inner[-1].T, noise_b[t].T, out=noise[block])
        y.addcmul_(noise, u.index_select(0, row))
        ctx.layer, ctx.tasks = layer, tasks
        ctx.save_for_backward(x, v, u, row, a, b, noise_a, noise_b, *inner, *noise_inner)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and of the stacks."""
        x, v, u, row, a, b, noise_a, noise_b, *kept = ctx.saved_tensors
        inner, noise_inner = kept[: len(kept) // 2], kept[len(kept) // 2 :]
        dy, tasks = gradients[0], ctx.tasks
        dy_signed = dy * u.index_select(0, row)
        signs = v.index_select(0, row)
        signed = x * signs
        d_a, d_b, d_noise_a, d_noise_b = (torch.zeros_like(stack) for stack in (a, b, noise_a, noise_b))
        dx = d_signed = None
        if ctx.needs_input_grad[0]:
            dx, d_signed = dy @ ctx.layer.weight(dy.dtype), torch.empty_like(x)
        for i, (t, block) in enumerate(tasks.slices()):
            d_inner = b[t].T @ dy[block].T
            d_noise_inner = noise_b[t].T @ dy_signed[block].T
            d_a[t] = d_inner @ x[block]
            d_b[t] = (inner[i] @ dy[block]).T
            d_noise_a[t] = d_noise_inner @ signed[block]
            d_noise_b[t] = (noise_inner[i] @ dy_signed[block]).T
            if dx is not None and d_signed is not None:
                dx[block].addmm_(d_inner.T, a[t])
                torch.mm(d_noise_inner.T, noise_a[t], out=d_signed[block])
        if dx is not None and d_signed is not None:
            dx.addcmul_(d_signed, signs)
        return dx, None, None, None, None, None, d_a, d_b, d_noise_a, d_noise_b
