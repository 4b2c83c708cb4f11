"""Settings of a prediction: plain values for a request, a job and a run.

This file imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Samples: TypeAlias = int | Literal["auto"]

# Number of samples that "auto" means for free text.
AUTO_TEXT_SAMPLES = 16


@dataclass(frozen=True)
class Thresholds:
    """Bounds that an answer must meet, or the gate abstains; None sets no bound.

    Information, entropy and log-probability are in nats. `max_semantic_entropy` and
    `min_logprob_per_token` are for free text: an answer that was chosen from options meets them
    always. An input whose typicality is not known fails `min_typicality`, and one of a question
    that is not declinable `min_answerable`.
    """

    min_confidence: float | None = None
    min_margin: float | None = None
    max_mutual_information: float | None = None
    max_semantic_entropy: float | None = None
    min_logprob_per_token: float | None = None
    min_typicality: float | None = None
    min_answerable: float | None = None

    @property
    def of_text(self) -> bool:
        """Return whether a threshold is for free text."""
        return self.max_semantic_entropy is not None or self.min_logprob_per_token is not None


@dataclass(frozen=True)
class PredictSettings:
    """Settings of one prediction. Equal settings, posterior and prompts give equal predictions.

    `samples` is the number of posterior samples; 0 predicts with the posterior's mean. "auto" draws
    until the confidence is known to +-`tolerance` or `thresholds` are decided, at most
    `most_samples`. For free text, "auto" is `AUTO_TEXT_SAMPLES`. Each sample writes
    `answers_per_sample` free-text answers of at most `max_new_tokens` tokens: the first greedily,
    the others by drawing tokens.
    """

    samples: Samples = 16
    seed: int = 0
    max_new_tokens: int = 32
    answers_per_sample: int = 1
    most_samples: int = 64
    thresholds: Thresholds = Thresholds()
    tolerance: float = 0.02

    @property
    def option_samples(self) -> int:
        """Return the most samples that a query with options gets."""
        return self.most_samples if self.samples == "auto" else self.samples

    @property
    def text_samples(self) -> int:
        """Return the number of samples that a free-text query gets."""
        if self.samples == "auto":
            return min(self.most_samples, AUTO_TEXT_SAMPLES)
        return self.samples
