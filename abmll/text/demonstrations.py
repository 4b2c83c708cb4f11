"""Demonstrations: labelled examples in the prompt, for in-context learning (Brown et al. 2020)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from abmll.errors import PromptTooLongError
from abmll.text.prompting import EncodedPrompt, PromptTemplate
from abmll.text.tasks import Example, Query

SEPARATOR = "\n\n"


class Encodes(Protocol):
    """Part of a `PromptEncoder` that `fitting` uses."""

    def encode(self, query: Query) -> EncodedPrompt:
        """Return the prompt of `query`. Raises `PromptTooLongError` where it does not fit."""


def demonstrate(support: Sequence[Example], query: Query, template: PromptTemplate) -> Query:
    """Return `query` with the labelled examples in front of its input.

    Each example is written as the template writes a query with its answer, so the prompt is a plain
    sequence of examples.
    """
    shown = [
        f"{template.shown(example.query)}{template.asked(example.query)}{template.before_output}{example.output}{SEPARATOR}{template.before_input}"
        for example in support
    ]
    return replace(query, input="".join(shown) + query.input)


def fitting(
    support: Sequence[Example], query: Query, encoder: Encodes, template: PromptTemplate, max_tokens: int
) -> Query:
    """Return `query` behind as many demonstrations as fit `max_tokens` together with it.

    The first examples of `support` are taken, and none where not even one fits.
    """

    def too_long(count: int) -> bool:
        try:
            return encoder.encode(demonstrate(support[:count], query, template)).tokens > max_tokens
        except PromptTooLongError:
            return True

    # Bisection is right because a demonstration only adds tokens.
    count = bisect_right(range(1, len(support) + 1), False, key=too_long)
    return demonstrate(support[:count], query, template)
