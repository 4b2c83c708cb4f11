"""Log-probabilities of tokens over the vocabulary, without all of its logits at once.

The logits of P tokens over a vocabulary of V words are the largest tensor of a pass, and reading
them again for the normaliser takes as long as computing them (600 tokens of the embedded default,
one core: 230 ms, and 116 ms in blocks). So they are made block by block, and each block is used
while it is in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

# Tokens and words of one block: on the CPU its logits in fp32 take 2 MiB. On a GPU, few large
# kernels are faster.
BLOCK_TOKENS, BLOCK_WORDS, BLOCK_WORDS_GPU = 512, 1024, 32_768
# Words that a `Normaliser` keeps of each token, and tokens that are looked at at once.
KEPT_WORDS, TOKENS_AT_ONCE = 512, 64
SMALLEST_SHARE = 1e-12


def token_log_probs(states: Tensor, head: nn.Module, place: Tensor, target: Tensor) -> Tensor:
    """Return the log-probability [K], in nats and in fp32, of word `target[k]` at `place[k]`.

    `states` [P, d] are what the frozen output layer `head` (d -> V) reads. The result is
    differentiable in `states`.
    """
    weight: Any = head.weight
    bias: Any = getattr(head, "bias", None)
    chosen = weight[target].float()
    picked = (states.float()[place] * chosen).sum(-1)
    if bias is not None:
        picked = picked + bias[target].float()
    normaliser: Tensor = _LogSumExp.apply(states, weight, bias)  # type: ignore[no-untyped-call]
    found: Tensor = picked - normaliser[place]
    return found


@dataclass(frozen=True)
class Normaliser:
    """The words that P tokens predict, as far as a small change of their states needs it.

    `log` [P] is the logarithm of the normaliser. `words` [P, K] are the most probable words and
    `shares` [P, K] their probabilities. `rest` [P] is the probability of the other words, and
    `rest_mean` [P, d] the mean of their output vectors.
    """

    log: Tensor
    words: Tensor
    shares: Tensor
    rest: Tensor
    rest_mean: Tensor

    def split(self, sizes: Sequence[int]) -> list[Normaliser]:
        """Return the parts with `sizes` tokens."""
        columns = [getattr(self, field.name).split(sizes) for field in fields(self)]
        return [Normaliser(*part) for part in zip(*columns, strict=True)]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Normaliser:
        """Undo `split`."""
        return Normaliser(
            *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls))
        )


def normaliser(states: Tensor, head: nn.Module, words: int = KEPT_WORDS) -> Normaliser:
    """Return the normaliser of `states` [P, d], with the `words` most probable ones of each."""
    weight: Any = head.weight
    bias: Any = getattr(head, "bias", None)
    parts = []
    for rows in _spans(len(states), TOKENS_AT_ONCE):
        shares = _logits(states[rows], weight, bias, slice(None))
        log = shares.logsumexp(-1)
        shares.sub_(log[:, None]).exp_()
        top, index = shares.topk(min(words, len(weight)))
        shares.scatter_(1, index, 0.0)
        rest = shares.sum(-1)
        mean = (shares.to(weight.dtype) @ weight).float() / rest.clamp_min(SMALLEST_SHARE)[:, None]
        parts.append(Normaliser(log, index, top, rest, mean))
    return Normaliser.joined(parts)


def changed_log_probs(
    known: Normaliser,
    states: Tensor,
    moves: Callable[[slice], Tensor],
    head: nn.Module,
    place: Tensor,
    target: Tensor,
) -> Tensor:
    """Return the log-probabilities [S, K] of the targets at the states plus each of S moves.

    `states` [P, d] are those of `known`. `moves(rows)` are the moves [S, p, d] of some of them.
    `place` and `target` are as in `token_log_probs`. With q the probabilities before, a move
    multiplies the normaliser by

        sum_v q_v exp(w_v . move).

    The sum is exact over the words that are kept, and of the others the mean of w_v is taken: an
    error of second order in the move, times their probability.
    """
    weight: Any = head.weight
    bias: Any = getattr(head, "bias", None)
    before = (states.float()[place] * weight[target].float()).sum(-1) - known.log[place]
    if bias is not None:
        before = before + bias[target].float()
    changes: list[Tensor] = []
    asked: list[Tensor] = []
    for rows in _spans(len(states), TOKENS_AT_ONCE):
        moved = moves(rows).to(weight.dtype).transpose(0, 1)  # [p, S, d]
        grown = torch.bmm(moved, weight[known.words[rows]].mT).float()  # [p, S, K]
        grown += known.shares[rows].log()[:, None]
        others = (
            torch.bmm(moved.float(), known.rest_mean[rows][..., None]) + known.rest[rows].log()[:, None, None]
        )
        growth = torch.logaddexp(_log_sum_exp(grown), others[..., 0])  # [p, S]
        here = ((place >= rows.start) & (place < rows.stop)).nonzero()[:, 0]
        own = place[here] - rows.start
        gained = torch.bmm(moved[own], weight[target[here]][..., None])[..., 0].float()
        changes.append(gained - growth[own])
        asked.append(here)
    found = torch.empty(len(place), changes[0].shape[1], dtype=torch.float32, device=states.device)
    found[torch.cat(asked)] = torch.cat(changes)
    result: Tensor = (before[:, None] + found).T
    return result


def _log_sum_exp(values: Tensor) -> Tensor:
    """Return the logarithm of the sum of exponentials over the last dimension; changes `values`."""
    highest = values.amax(-1, keepdim=True)
    found: Tensor = values.sub_(highest).exp_().sum(-1).log_().add_(highest[..., 0])
    return found


class _LogSumExp(torch.autograd.Function):
    """log sum_v exp(w_v . x + b_v) of each row x of `states` [P, d], in fp32: [P]."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found = torch.empty(len(states), dtype=torch.float32, device=states.device)
        for rows in _spans(len(states), BLOCK_TOKENS):
            x = states[rows]
            highest = x.new_full((len(x),), -torch.inf, dtype=torch.float32)
            total = torch.zeros_like(highest)
            for words in _spans(len(weight), _block_words(weight)):
                logits = _logits(x, weight, bias, words)
                higher = torch.maximum(highest, logits.amax(-1))
                total = total * (highest - higher).exp() + logits.sub_(higher[:, None]).exp_().sum(-1)
                highest = higher
            found[rows] = highest + total.log()
        ctx.save_for_backward(states, weight, bias, found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        states, weight, bias, found = ctx.saved_tensors
        out = torch.empty_like(states)
        for rows in _spans(len(states), BLOCK_TOKENS):
            x = states[rows]
            total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
            for words in _spans(len(weight), _block_words(weight)):
                shares = _logits(x, weight, bias, words).sub_(found[rows][:, None]).exp_()
                total += shares.to(weight.dtype) @ weight[words]
            out[rows] = (total * gradients[0][rows][:, None]).to(out.dtype)
        return out, None, None


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None, words: slice) -> Tensor:
    return linear(x, weight[words], None if bias is None else bias[words]).float()


def _block_words(weight: Tensor) -> int:
    return BLOCK_WORDS if weight.device.type == "cpu" else BLOCK_WORDS_GPU


def _spans(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(length, start + size))
