"""Log-probabilities of tokens over the vocabulary, without all of its logits at once.

The logits of P tokens over a vocabulary of V words are the largest tensor of a pass, and reading
them again for the normaliser takes as long as computing them (600 tokens of the embedded default,
one core: 230 ms, and 116 ms in blocks). So they are made block by block, and each block is used
while it is in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

# Tokens and words of one block: on the CPU its logits in fp32 take 2 MiB. On a GPU, few large
# kernels are faster.
BLOCK_TOKENS, BLOCK_WORDS, BLOCK_WORDS_GPU = 512, 1024, 32_768


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
