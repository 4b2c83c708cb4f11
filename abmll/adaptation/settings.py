"""Settings of adaptation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

Effort = Literal["instant", "fast", "full"]
"""How much work an adaptation is, by name: see `settings_of`."""
FAST_STEPS = 2
FAST_BATCH = 16
# A support of several questions with more rows than `FEW_ROWS` comes at least once in the steps of
# `full`, which are at most `MOST_STEPS` for that.
FEW_ROWS, MOST_STEPS = 16, 24


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
    support. `fast` takes two steps on batches of at least 16, and where that makes batches larger,
    the learning rate is larger by the same factor.
    """
    if effort == "instant":
        return replace(full, steps=0)
    if effort == "fast":
        batch = max(FAST_BATCH, full.batch_size)
        rate = full.learning_rate * batch / full.batch_size
        return replace(full, steps=min(FAST_STEPS, full.steps), learning_rate=rate, batch_size=batch)
    return full


def for_questions(full: AdaptSettings, rows: int, questions: int) -> AdaptSettings:
    """Return the settings of `full` for a support of so many rows and different questions.

    A row has the examples that ask about one input, or a part of them. With several questions there
    is an example for each answer. The steps grow with them, so that every row comes at least once.
    """
    if questions < 2 or rows <= FEW_ROWS or not full.steps:
        return full
    return replace(full, steps=max(full.steps, min(MOST_STEPS, math.ceil(rows / full.batch_size))))
