"""Attention over packed rows: all tokens lie in one flat batch, and a token sees its own row only.

On the CPU, short rows are computed by plain matrix products, one prompt after another without
padding, with a backward pass of our own. For 8 rows of 48 tokens with 9 heads in bf16, forward and
backward of one layer take 1.7 ms so, and 11.3 ms with the fused kernel. Plain products hold the
whole matrix of scores. So longer rows take the fused kernel, one after another, and so do all rows
on a GPU, padded to equal length. On the CPU a row has the same numbers alone and beside others
(`benchmarks/batch_mates.py`). A row that is longer still is computed in blocks of its tokens
(`decoder/passes.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from abmll.decoder.rows import LENGTH_MULTIPLE, Rows

NAME = "abmll_packed"
LONGEST_PLAIN_TOKENS = 512
# Activations for which the CPU computes blocks by plain products: in fp32 the fused kernel is
# faster.
BY_HEAD = torch.bfloat16
# Tokens of a block whose weights are held at once, for the heads that share a key.
STRIP_TOKENS = 256


@dataclass(frozen=True)
class Layout:
    """Places of packed tokens in padded rows (see `Rows`), and the bias of attention scores."""

    token_at: Tensor  # [R * L]
    place_of: Tensor  # [N]
    bias: Tensor  # [R, 1, L, L]: 0 where visible, the dtype's lowest number elsewhere
    lengths: tuple[int, ...]  # of the R rows
    shared_by_row: tuple[int, ...]
    own_by_row: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, rows: Rows, dtype: torch.dtype) -> Self:
        """Return the layout of `rows` for scores of `dtype`."""
        bias = additive_mask(rows.visible, dtype)
        return cls(rows.token_at, rows.place_of, bias, rows.lengths, rows.shared_by_row, rows.own_by_row)

    def one_by_one(self) -> Iterator[tuple[slice, Layout]]:
        """Yield the tokens of each row, and the layout that the row has alone."""
        start = 0
        for i, length in enumerate(self.lengths):
            padded = -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
            places = torch.arange(length, device=self.bias.device)
            yield (
                slice(start, start + length),
                Layout(
                    torch.cat([places, places.new_zeros(padded - length)]),
                    places,
                    self.bias[i : i + 1, :, :padded, :padded],
                    (length,),
                    self.shared_by_row[i : i + 1],
                    self.own_by_row[i : i + 1],
                ),
            )
            start += length

    @cached_property
    def spans(self) -> Sequence[Span]:
        """Return one span for each prompt; all layers of a pass have the same.

        A prompt sees the prefix of its row and itself. So products have the shapes that they have
        where the prompt is alone, and give the same numbers: in bf16 a sum in another order, over
        the keys of other prompts too, moved probabilities by 2e-3.
        """
        spans: list[Span] = []
        start = 0
        of_row = zip(self.lengths, self.shared_by_row, self.own_by_row, self.bias, strict=True)
        for length, shared, own, bias in of_row:
            at = shared
            for number, tokens in enumerate(own):
                first = 0 if number == 0 else at  # the tokens of the prefix are in the first span
                own_bias = bias[0, first : at + tokens]
                seen = own_bias[:, : at + tokens]
                if number:
                    seen = torch.cat([own_bias[:, :shared], own_bias[:, at : at + tokens]], 1)
                queries = slice(start + first, start + at + tokens)
                spans.append(Span(queries, slice(start, start + (shared if number else 0)), seen))
                at += tokens
            start += length
        return spans


@dataclass(frozen=True)
class Span:
    """Tokens `queries` of a packed batch, which see the tokens `prefix` and each other.

    The scores of the n queries have the bias [n, prefix and n].
    """

    queries: slice
    prefix: slice
    bias: Tensor

    def keys(self, tokens: Tensor) -> Tensor:
        """Return the keys or values [H, prefix and n, D] that the span sees, of all `tokens`."""
        own = tokens[self.queries]
        if self.prefix.start < self.prefix.stop:
            own = torch.cat([tokens[self.prefix], own])
        return own.transpose(0, 1)

    def add(self, gradients: Tensor, gradient: Tensor) -> None:
        """Add the gradient [H, prefix and n, D] of `keys` to those of all tokens."""
        count = self.prefix.stop - self.prefix.start
        gradients[self.prefix] += gradient[:, :count].transpose(0, 1)
        gradients[self.queries] += gradient[:, count:].transpose(0, 1)


@dataclass
class BlockLayout:
    """Some tokens of one long row, `queries`, whose earlier tokens a layer has computed already.

    `past` are the keys and values [1, heads, start, D] of the earlier tokens; attention adds those
    of the block, and leaves the block's own in `own`. No matrix is larger than tokens of the block
    times keys that one of them sees.
    """

    view: BlockView
    past: tuple[Tensor, Tensor] | None = None
    own: tuple[Tensor, Tensor] | None = None

    @property
    def all(self) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the row up to the end of the block. After attention only."""
        if self.own is None:
            raise RuntimeError("attention has not run")
        if self.past is None:
            return self.own
        key, value = (torch.cat(pair, 2) for pair in zip(self.past, self.own, strict=True))
        return key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return the output [1, n, H, D] for the block's query, key and value [1, heads, n, D]."""
        self.own = key, value
        keys, values = (self.view.chosen(tensor) for tensor in self.all)
        if query.device.type == "cpu" and query.dtype == BY_HEAD:
            mixed: Tensor = _ByHead.apply(query[0], keys[0], values[0], self.view, scale)  # type: ignore[no-untyped-call]
            return mixed.transpose(0, 1)[None]
        mixed = scaled_dot_product_attention(
            query, keys, values, attn_mask=self.view.mask(), scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        return mixed.transpose(1, 2)


@dataclass(frozen=True)
class BlockView:
    """What `count` tokens of a row see: the keys `needed`, all of them where it is None.

    Where all tokens are of one part, they see the needed keys up to their own, and `visible` is
    None. Otherwise it is [count, needed].
    """

    count: int
    keys: int
    needed: Tensor | None
    visible: Tensor | None
    device: torch.device

    @classmethod
    def of(cls, rows: Rows, queries: slice) -> Self:
        """Return what the tokens `queries` of the only row see."""
        visible = rows.visible_from(queries)
        seen = visible.any(0)
        needed = None if bool(seen.all()) else seen.nonzero()[:, 0]
        own = rows.parts[0, 0, queries]
        chosen = visible if needed is None else visible[:, needed]
        kept = None if bool((own == own[0]).all()) else chosen
        keys = queries.stop if needed is None else len(needed)
        return cls(len(own), keys, needed, kept, own.device)

    def chosen(self, keys: Tensor) -> Tensor:
        """Return the needed ones of keys or values [1, heads, all, D]."""
        return keys if self.needed is None else keys.index_select(2, self.needed)

    def mask(self) -> Tensor:
        """Return whether each token sees each needed key, [count, keys]."""
        if self.visible is not None:
            return self.visible
        ones = torch.ones(self.count, self.keys, dtype=torch.bool, device=self.device)
        return ones.tril_(self.keys - self.count)

    def strips(self) -> Iterator[tuple[slice, int, Tensor]]:
        """Yield spans of the tokens, the number of first keys that they see, and what they do not
        see.

        The last is [span, keys] where tokens are of several parts, and else [span, span]: of the
        last keys.
        """
        for start in range(0, self.count, STRIP_TOKENS):
            stop = min(start + STRIP_TOKENS, self.count)
            if self.visible is not None:
                yield slice(start, stop), self.keys, ~self.visible[start:stop]
            else:
                ones = torch.ones(stop - start, stop - start, dtype=torch.bool, device=self.device)
                yield slice(start, stop), self.keys - self.count + stop, ones.triu_(1)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask [R, 1, L, keys] to add to scores, from `visible` [R, L, keys]."""
    zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return zeros.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def use_packed_attention(model: Any) -> None:
    """Make every layer of `model` use `packed_attention`."""
    AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Layout | BlockLayout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute attention, with the arguments and results that `transformers` expects.

    `query` is [1, H, N, D], `key` and `value` are [1, H / groups, N, D], and the output is
    [1, N, H, D]. Without a `layout`, the tensors are rows of equal length under `attention_mask`,
    as in generation with a cache.
    """
    if layout is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return output, None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(layout, BlockLayout):
        return layout.attend(query, key, value, scale), None
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [N, heads, D]
    if query.device.type != "cpu":
        mixed = _fused(q, k, v, layout, scale)
    elif max(layout.lengths) <= LONGEST_PLAIN_TOKENS:
        mixed = _ByRow.apply(q, k, v, layout, scale)  # type: ignore[no-untyped-call]
    else:  # a short row is computed as beside short ones: in bf16 the kernels differ by 9e-3
        mixed = torch.cat(
            [
                _ByRow.apply(q[at], k[at], v[at], row, scale)  # type: ignore[no-untyped-call]
                if row.lengths[0] <= LONGEST_PLAIN_TOKENS
                else _fused(q[at], k[at], v[at], row, scale)
                for at, row in layout.one_by_one()
            ]
        )
    return mixed[None], None


def _fused(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    rows, length = layout.bias.shape[0], layout.bias.shape[-1]
    q, k, v = (
        _Gather.apply(t, layout.token_at, layout.place_of).unflatten(0, (rows, length)).transpose(1, 2)  # type: ignore[no-untyped-call]
        for t in (query, key, value)
    )
    mixed = scaled_dot_product_attention(
        q, k, v, attn_mask=layout.bias, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    tokens: Tensor = _Gather.apply(mixed.transpose(1, 2).flatten(0, 1), layout.place_of, layout.token_at)  # type: ignore[no-untyped-call]
    return tokens


class _ByHead(torch.autograd.Function):
    """softmax(scale q k^T) v for queries [H, n, D] of a block, one key head and strip after
    another.

    `keys` and `values` are [H / groups, keys, D]. The weights are made again for the backward pass.
    In bf16 on one core, 512 queries of 9 heads and 4096 keys take 50 ms so, and 150 with the fused
    kernel.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, keys: Tensor, values: Tensor, view: BlockView, scale: float
    ) -> Tensor:
        mixed = torch.empty_like(query, memory_format=torch.contiguous_format)
        by_key = query.unflatten(0, (len(keys), -1))
        out = mixed.unflatten(0, (len(keys), -1))
        for strip, seen, hidden in view.strips():
            for head, (key, value) in enumerate(zip(keys, values, strict=True)):
                weights = _weights(by_key[head, :, strip] * scale, key[:seen], hidden)
                out[head, :, strip] = (weights.flatten(0, 1) @ value[:seen]).view_as(out[head, :, strip])
        ctx.save_for_backward(query, keys, values)
        ctx.view, ctx.scale = view, scale
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, keys, values = ctx.saved_tensors
        of_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        of_keys, of_values = (
            torch.zeros(t.shape, dtype=torch.float32, device=t.device) for t in (keys, values)
        )
        by_key, of_mixed, out = (t.unflatten(0, (len(keys), -1)) for t in (query, gradients[0], of_query))
        for strip, seen, hidden in ctx.view.strips():
            for head, (key, value) in enumerate(zip(keys, values, strict=True)):
                scaled = by_key[head, :, strip] * ctx.scale
                weights = _weights(scaled, key[:seen], hidden).flatten(0, 1)
                own = of_mixed[head, :, strip].flatten(0, 1)
                of_values[head, :seen] += weights.T @ own
                of_scores = own @ value[:seen].T
                of_scores.sub_(torch.linalg.vecdot(of_scores, weights)[:, None]).mul_(weights)
                out[head, :, strip] = (of_scores @ key[:seen]).mul_(ctx.scale).view_as(scaled)
                of_keys[head, :seen] += of_scores.T @ scaled.flatten(0, 1)
        return of_query, of_keys.to(keys.dtype), of_values.to(values.dtype), None, None


def _weights(scaled: Tensor, key: Tensor, hidden: Tensor) -> Tensor:
    """Return the weights [groups, n, keys] of queries [groups, n, D]; `hidden` is that of the last
    keys.
    """
    scores = (scaled.flatten(0, 1) @ key.T).view(*scaled.shape[:2], len(key))
    scores[..., len(key) - hidden.shape[1] :].masked_fill_(hidden, -torch.inf)
    return scores.softmax(-1)


class _Gather(torch.autograd.Function):
    """`tensor[there]` with the gradient `gradient[back]`.

    The gradient is exact where elements that `back` does not name have none. This holds for
    padding: an empty place sees only itself, and no token sees it. The general gradient, which adds
    up by index, is slow on the CPU.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return tensor.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return gradients[0].index_select(0, back), None, None


class _ByRow(torch.autograd.Function):
    """softmax(scale q k^T + bias) v by matrix products, prompt by prompt.

    Heads that share a key are stacked into one taller product.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
        mixed = torch.empty_like(query, memory_format=torch.contiguous_format)
        shared, weights = key.shape[1], []
        for span in layout.spans:
            q, k, v = _taller(query[span.queries], shared), span.keys(key), span.keys(value)
            scores = torch.bmm(q, k.mT).mul_(scale)
            by_head = scores.view(shared, -1, *span.bias.shape)
            by_head += span.bias
            weights.append(scores.softmax(-1, dtype=torch.float32).to(v.dtype))
            _put(mixed[span.queries], torch.bmm(weights[-1], v), shared)
        ctx.save_for_backward(query, key, value, *weights)
        ctx.layout, ctx.scale = layout, scale
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, *all_weights = ctx.saved_tensors
        shared = key.shape[1]
        d_query, d_key, d_value = (
            torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (query, key, value)
        )
        for span, weights in zip(ctx.layout.spans, all_weights, strict=True):
            q, k, v = _taller(query[span.queries], shared), span.keys(key), span.keys(value)
            mixed = _taller(gradients[0][span.queries], shared)
            span.add(d_value, torch.bmm(weights.mT, mixed))
            d_scores = torch.bmm(mixed, v.mT)
            along = torch.linalg.vecdot(d_scores, weights)[..., None]
            d_scores.sub_(along).mul_(weights).mul_(ctx.scale)
            _put(d_query[span.queries], torch.bmm(d_scores, k), shared)
            span.add(d_key, torch.bmm(d_scores.mT, q))
        return d_query, d_key, d_value, None, None


def _taller(tokens: Tensor, shared: int) -> Tensor:
    """Stack heads that share a key: [n, heads, D] to [shared, heads / shared * n, D]."""
    n, heads, size = tokens.shape
    by_key = tokens.unflatten(1, (shared, heads // shared)).permute(1, 2, 0, 3)
    taller: Tensor = by_key.reshape(shared, heads // shared * n, size)
    return taller


def _put(out: Tensor, taller: Tensor, shared: int) -> None:
    """Undo `_taller` and write the result into tokens `out` [n, heads, D]."""
    n, heads, _ = out.shape
    by_key = out.unflatten(1, (shared, heads // shared)).permute(1, 2, 0, 3)
    by_key.copy_(taller.unflatten(1, (heads // shared, n)))
