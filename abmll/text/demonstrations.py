"""Labelled examples as demonstrations in the prompt: in-context use of the support (Brown et al. 2020)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

from abmll.errors import PromptTooLongError
from abmll.text.prompting import EncodedPrompt, PromptTemplate
from abmll.text.tasks import Example, Query

SEPARATOR = "\n\n"


class Encodes(Protocol):
    """What `fitting` needs of a `PromptEncoder`."""

    def encode(self, query: Query) -> EncodedPrompt:
        """Raises `PromptTooLongError`."""


def demonstrate(support: Sequence[Example], query: Query, template: PromptTemplate) -> Query:
    """`query` behind the labelled examples, each as the template writes it, so that the prompt is their plain sequence."""
    shown = [
        f"{template.shown(example.query)}{template.after_input}{template.before_output}{example.output}{SEPARATOR}{template.before_input}"
        for example in support
    ]
    return Query("".join(shown) + query.input, query.options)


def fitting(
    support: Sequence[Example], query: Query, encoder: Encodes, template: PromptTemplate, max_tokens: int
) -> Query:
    """`query` behind as many of the first demonstrations as fit `max_tokens` with it; behind none if need be."""

    def too_long(count: int) -> bool:
        try:
            return encoder.encode(demonstrate(support[:count], query, template)).tokens > max_tokens
        except PromptTooLongError:
            return True

    count = bisect_right(range(1, len(support) + 1), False, key=too_long)  # demonstrations only add tokens
    return demonstrate(support[:count], query, template)
