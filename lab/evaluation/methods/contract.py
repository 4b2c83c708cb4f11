"""The contract of a method, and what several methods do alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Protocol

from abmll.adaptation.settings import AdaptSettings
from abmll.model import FewShotModel
from abmll.prediction.run import Prediction
from abmll.text.tasks import Example, Query
from lab.evaluation.cells import Answer, Effort


class Method(Protocol):
    """Answers queries, given labelled examples.

    Equal arguments give equal answers. The model is left as it was found. A method with
    `needs_fixed_classes` is run on tasks whose items all have the same options alone.
    """

    needs_fixed_classes: ClassVar[bool] = False

    @property
    def sentence_encoder(self) -> str | None:
        """Name the sentence encoder that the model needs; None for that of its posterior."""
        return None

    def answer(
        self, model: FewShotModel, support: Sequence[Example], queries: Sequence[Query], seed: int
    ) -> tuple[list[Answer], Effort]:
        """Return an answer for each of `queries`, and what was done for them."""


def answers_of(predictions: Sequence[Prediction]) -> list[Answer]:
    """Return predictions as answers; with fewer than two samples their information is nan."""
    return [
        Answer(
            found.predictive.probabilities,
            found.predictive.uncertainty.mutual_information if found.predictive.samples > 1 else math.nan,
        )
        for found in predictions
    ]


def prediction_effort(predictions: Sequence[Prediction], samples: int) -> Effort:
    """Count the tokens of prompts and options, once for each sample."""
    tokens = sum(found.prompt_tokens + found.completion_tokens for found in predictions)
    return Effort(tokens=tokens * max(1, samples))


def adaptation_effort(
    settings: AdaptSettings, support_size: int, support_tokens: int, seconds: float
) -> Effort:
    """Count the tokens of the batches of all steps, by the mean length of the examples."""
    batch = min(settings.batch_size, support_size)
    return Effort(
        settings.steps, round(settings.steps * batch * support_tokens / max(1, support_size)), seconds
    )


def normalised(scores: Sequence[float]) -> tuple[float, ...]:
    """Divide non-negative scores by their sum; all zero gives equal probabilities."""
    total = math.fsum(scores)
    return tuple(score / total if total else 1 / len(scores) for score in scores)
