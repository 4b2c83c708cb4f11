"""The words of a diagnosis. This file imports no numerical library: records of requests read it."""

from __future__ import annotations

from typing import Literal

Verdict = Literal["healthy", "weak", "unfit"]
ReasonCode = Literal[
    "not_held_out",
    "question_unfit",
    "below_guessing",
    "no_better_than_guessing",
    "not_shown_to_beat_guessing",
    "no_gain_over_prior",
    "no_gain_over_in_context",
    "too_few_examples",
    "beats_guessing",
]
