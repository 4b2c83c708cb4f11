"""Attention on the CPU: plain matrix products for short sequences, the fused kernel for long ones.

Measured on one core, 8 rows of 9 heads in bf16, forward + backward of one layer: 48 tokens 11.3 ms fused and 1.7 ms plain,
192 tokens 42 and 19. Plain products hold the whole score matrix, so their memory grows with the square of the length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "abmll_cpu"
LONGEST_PLAIN_TOKENS = 512


def use_cpu_attention(model: Any) -> None:
    """Have `model` use `cpu_attention` in every layer."""
    AttentionInterface.register(NAME, cpu_attention)
    model.set_attn_implementation(NAME)


def cpu_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as `transformers` calls it: query [R, H, L, D], key and value [R, H / groups, keys, D] -> [R, L, H, D]."""
    if attention_mask is None or key.shape[2] > LONGEST_PLAIN_TOKENS:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return output, None
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scale, key.mT) + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None
