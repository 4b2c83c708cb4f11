"""How phi is fitted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AdaptSettings:
    """How phi is fitted: AdamW steps on batches of support examples.

    `beta` weighs KL(phi || theta); 0 is what the paper does at test time.
    """

    steps: int = 6
    learning_rate: float = 1e-3
    batch_size: int = 8
    beta: float = 0.0
