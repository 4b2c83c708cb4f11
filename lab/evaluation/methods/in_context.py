"""In-context learning (Brown et al. 2020): nothing is trained.

The prompt shows as many examples of the support as fit, as demonstrations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from abmll.model import FewShotModel
from abmll.text.demonstrations import fitting
from abmll.text.tasks import Example, Query
from lab.evaluation.cells import Answer, Effort
from lab.evaluation.methods.contract import Method, answers_of, prediction_effort


@dataclass(frozen=True)
class InContext(Method):
    """Answers behind demonstrations.

    `max_tokens` bounds a prompt, its demonstrations and options included, below the model's
    context.
    """

    kind: Literal["in_context"] = "in_context"
    max_tokens: int = 2048

    def answer(
        self, model: FewShotModel, support: Sequence[Example], queries: Sequence[Query], seed: int
    ) -> tuple[list[Answer], Effort]:
        """See `Method`."""
        prompts = [
            fitting(support, query, model.encoder, model.encoder.template, self.max_tokens)
            for query in queries
        ]
        found = model.predict(None, prompts, samples=0, truncate=True)
        return answers_of(found), prediction_effort(found, 0)
