"""In-context learning: the support as demonstrations in the prompt, as many as fit; nothing is trained (Brown et al. 2020)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from abmll.errors import PromptTooLongError
from abmll.evaluation.methods.contract import answers_of, prediction_effort
from abmll.evaluation.records import Answer, Effort
from abmll.model import FewShotModel
from abmll.prompting import PromptEncoder, PromptTemplate
from abmll.tasks import Example, Query

SEPARATOR = "\n\n"


def demonstrate(support: Sequence[Example], query: Query, template: PromptTemplate) -> Query:
    """`query` behind the labelled examples, each as the template writes it, so that the prompt is their plain sequence."""
    shown = [
        f"{example.input}{template.after_input}{template.before_output}{example.output}{SEPARATOR}{template.before_input}"
        for example in support
    ]
    return Query("".join(shown) + query.input, query.options)


def fitting(support: Sequence[Example], query: Query, encoder: PromptEncoder, max_tokens: int) -> Query:
    """`query` behind as many of the first demonstrations as fit `max_tokens` with it; behind none if need be."""

    def too_long(count: int) -> bool:
        try:
            return encoder.encode(demonstrate(support[:count], query, encoder.template)).tokens > max_tokens
        except PromptTooLongError:
            return True

    count = bisect_right(range(1, len(support) + 1), False, key=too_long)  # demonstrations only add tokens
    return demonstrate(support[:count], query, encoder.template)


@dataclass(frozen=True)
class InContext:
    """`max_tokens` bounds a prompt (its demonstrations and options included) below the model's own context."""

    kind: Literal["in_context"] = "in_context"
    max_tokens: int = 2048

    def answer(
        self, model: FewShotModel, support: Sequence[Example], queries: Sequence[Query], seed: int
    ) -> tuple[list[Answer], Effort]:
        """See `Method`."""
        prompts = [fitting(support, query, model.encoder, self.max_tokens) for query in queries]
        found = model.predict(None, prompts, samples=0, truncate=True)
        return answers_of(found), prediction_effort(found, 0)
