"""Settings of adaptation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AdaptSettings:
    """Settings of one adaptation: AdamW steps on batches of support examples.

    `beta` is the weight of KL(phi || theta); the paper has 0 at test time.
    """

    steps: int = 6
    learning_rate: float = 1e-3
    batch_size: int = 8
    beta: float = 0.0
