"""The questions of an adapter, each of which has a calibration of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from abmll.text.questions import Question, TypedQuestion
from abmll.text.tasks import Query
from service.errors import InvalidRequestError
from service.gating.state import digest

if TYPE_CHECKING:
    from model_store.adapters.manifest import AdapterManifest

WantedQuestion: TypeAlias = str | int | None
"""A question of an adapter by its name or its index, which may be a text of digits; None stands for
the only one."""
_DIGEST_CHARS = 16


def question_digest(asked: Query) -> str:
    """Return the digest of what is asked about an input; empty without an instruction.

    Options count with their descriptions, in any order: that is what confidences depend on.
    """
    if not asked.instruction:
        return ""
    described = zip(asked.options, asked.descriptions or ("",) * len(asked.options), strict=True)
    return digest(asked.instruction, tuple(sorted(described)), chars=_DIGEST_CHARS)


def digest_of_query(query: Query, manifest: AdapterManifest) -> str:
    """Return the digest of what a query of a request is asked.

    Without options of its own, that is what all examples of the adapter are asked.
    """
    of_adapter = not query.options and bool(manifest.support.options)
    return question_digest(manifest.support.examples[0].query if of_adapter else query)


@dataclass(frozen=True)
class AdapterQuestion:
    """A question of an adapter, and its position among them."""

    index: int
    typed: TypedQuestion

    @property
    def question(self) -> Question:
        """Return the question, without what its caller calls the options."""
        return self.typed.question

    @property
    def digest(self) -> str:
        """Return the digest of the question, which its calibration is kept by."""
        return question_digest(self.question.query(""))

    @property
    def name(self) -> str:
        """Return what cases call the question: its name, or its index where it has none."""
        return self.question.name or str(self.index)


def questions_of_adapter(manifest: AdapterManifest) -> tuple[AdapterQuestion, ...]:
    """Return the questions of an adapter; none where its examples have no instruction."""
    return tuple(AdapterQuestion(i, typed) for i, typed in enumerate(manifest.support.asked))


def chosen_question(manifest: AdapterManifest, wanted: WantedQuestion) -> AdapterQuestion | None:
    """Return the question of an adapter that is `wanted`; None for an adapter without instructions.

    Raises `InvalidRequestError` where there is no such question, or the only one is wanted of
    several.
    """
    found = questions_of_adapter(manifest)
    if not found:
        if wanted is None:
            return None
        message = "the adapter was made from examples without instructions: leave question out"
        raise InvalidRequestError(message, "question")
    if wanted is None:
        if len(found) == 1:
            return found[0]
        message = f"the adapter has {len(found)} questions: name one, by name or by index from 0"
        raise InvalidRequestError(message, "question")
    named = [one for one in found if wanted == one.question.name]
    index = int(wanted) if isinstance(wanted, int) or re.fullmatch("[0-9]{1,6}", wanted) else len(found)
    at_index = [one for one in found if one.index == index]
    if chosen := named or at_index:
        return chosen[0]
    message = f"the adapter has no question {wanted!r:.80}: it has {len(found)}, with indices from 0"
    raise InvalidRequestError(message, "question")
