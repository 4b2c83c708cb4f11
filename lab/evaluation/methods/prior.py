"""No adaptation: theta answers as it is.

With an untrained theta this is the pretrained model, zero-shot. With a trained one it is multi-task
LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from abmll.model import FewShotModel
from abmll.text.tasks import Example, Query
from lab.evaluation.cells import Answer, Effort
from lab.evaluation.methods.contract import Method, answers_of, prediction_effort


@dataclass(frozen=True)
class Prior(Method):
    """Answers without the support; `samples` 0 answers with the mean."""

    kind: Literal["prior"] = "prior"
    samples: int = 0

    def answer(
        self, model: FewShotModel, support: Sequence[Example], queries: Sequence[Query], seed: int
    ) -> tuple[list[Answer], Effort]:
        """See `Method`."""
        found = model.predict(None, queries, samples=self.samples, seed=seed, truncate=True)
        return answers_of(found), prediction_effort(found, self.samples)
