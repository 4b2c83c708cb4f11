"""Settings of adaptation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Effort = Literal["instant", "fast", "full"]
"""How much work an adaptation is, by name: see `settings_of`."""
FAST_STEPS = 2


@dataclass(frozen=True)
class AdaptSettings:
    """Settings of one adaptation: AdamW steps on batches of support examples.

    Examples that ask about one input come as one: `batch_size` is the number of inputs.
    `beta` is the weight of KL(phi || theta); the paper has 0 at test time.
    """

    steps: int = 6
    learning_rate: float = 1e-3
    batch_size: int = 8
    beta: float = 0.0


def settings_of(effort: Effort, full: AdaptSettings) -> AdaptSettings:
    """Return the settings of `effort`, where `full` are those that theta was trained for.

    `instant` takes no gradient step: phi is theta, and only the Gaussian process learns the
    support. `fast` takes two steps on batches twice as large, at twice the learning rate.
    """
    if effort == "instant":
        return replace(full, steps=0)
    if effort == "fast":
        steps = min(FAST_STEPS, full.steps)
        return replace(
            full, steps=steps, learning_rate=2 * full.learning_rate, batch_size=2 * full.batch_size
        )
    return full
