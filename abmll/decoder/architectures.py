"""Which of `transformers`' decoders have the parts that we know by heart: those built like Llama."""

from __future__ import annotations

from torch import nn

# x = x + attention(norm(x)); x + mlp(norm(x)), with RMS norms and an MLP of down(silu(gate) * up).
LIKE_LLAMA = ("Llama", "Mistral", "Qwen2", "Qwen3")


def is_like_llamas(module: nn.Module, part: str) -> bool:
    """Whether `module` is this part (`RMSNorm`, `MLP` or `DecoderLayer`) of such a decoder, as `transformers` wrote it."""
    return type(module).__name__ in {family + part for family in LIKE_LLAMA}
