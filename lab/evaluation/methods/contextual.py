"""Contextual calibration (Zhao et al. 2021).

Probabilities are divided by those of inputs that say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from abmll.model import FewShotModel
from abmll.text.tasks import Example, Query
from lab.evaluation.cells import Answer, Effort
from lab.evaluation.methods.contract import Method, normalised
from lab.evaluation.methods.in_context import InContext
from lab.evaluation.methods.prior import Prior

CONTENT_FREE = ("N/A", "", "[MASK]")  # the paper's three


@dataclass(frozen=True)
class ContextualCalibration(Method):
    """Calibrates the answers `of` another method: zero-shot prediction, or in-context learning."""

    kind: Literal["contextual"] = "contextual"
    of: Prior | InContext = field(default_factory=Prior)

    def answer(
        self, model: FewShotModel, support: Sequence[Example], queries: Sequence[Query], seed: int
    ) -> tuple[list[Answer], Effort]:
        """See `Method`."""
        option_lists = list(dict.fromkeys(query.options for query in queries))
        neutral = [Query(text, options) for options in option_lists for text in CONTENT_FREE]
        answers, effort = self.of.answer(model, support, [*queries, *neutral], seed)
        said = iter(answers[len(queries) :])
        bias = {
            options: [
                sum(column) / len(CONTENT_FREE)
                for column in zip(*(next(said).probabilities for _ in CONTENT_FREE), strict=True)
            ]
            for options in option_lists
        }
        return [
            Answer(
                normalised([p / b for p, b in zip(answer.probabilities, bias[query.options], strict=True)])
            )
            for query, answer in zip(queries, answers, strict=False)
        ], effort
