"""Decoders of `transformers` whose layers are computed by our own code: those built like Llama."""

from __future__ import annotations

from torch import nn

# A layer is x = x + attention(norm(x)), then x + mlp(norm(x)), with RMS norms and the MLP
# down(silu(gate) * up).
LIKE_LLAMA = ("Llama", "Mistral", "Qwen2", "Qwen3")


def is_like_llamas(module: nn.Module, part: str) -> bool:
    """Return whether `module` is the class of `transformers` for a part of such a decoder.

    `part` is `RMSNorm`, `MLP` or `DecoderLayer`.
    """
    return type(module).__name__ in {family + part for family in LIKE_LLAMA}
