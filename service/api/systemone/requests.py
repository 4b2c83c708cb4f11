"""From a System One request to its questions, its state and its cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

from abmll.text.questions import TypedQuestion
from service.api.decision_requests import DecisionBody
from service.api.structured_text import text_of
from service.api.systemone import wire
from service.api.typed_questions import (
    LabelledInput,
    Location,
    choice,
    predicate,
    score,
)
from service.errors import ServiceError
from service.schemas.structure import JsonValue

Question: TypeAlias = wire.Noul | wire.Choice | wire.Score

CHOOSE_OPTION = "Choose the option that fits."
CHOOSE_LEVEL = "Choose the level that fits."
"""The instructions of questions that have none."""


def decision_body(body: wire.SystemOneRequest) -> DecisionBody:
    """Return what `body` asks for."""
    cases = body.abmll.cases
    return DecisionBody(
        model=body.model,
        inputs=(text_of(body.state),),
        questions=[typed_question(name, question) for name, question in body.questions.items()],
        extras=body.abmll,
        labelled=None
        if cases is None
        else [LabelledInput(text_of(case.state), case.answers) for case in cases],
    )


def typed_question(name: str, question: Question) -> TypedQuestion:
    """Return the question.

    A score has no names of its levels, so their descriptions are its options. A noul without
    instructions has its criteria in their place.
    """
    given = _described(question.instructions)
    if isinstance(question, wire.Noul):
        criteria = question.criteria or wire.NoulCriteria()
        yes, no = _described(criteria.true), _described(criteria.false)
        both = "\n".join(f"{option}: {text}" for option, text in (("yes", yes), ("no", no)) if text)
        return predicate(name, given or both, yes, no)
    if isinstance(question, wire.Choice):
        descriptions = list(map(_described, question.criteria.values()))
        return choice(name, given or CHOOSE_OPTION, list(question.criteria), descriptions)
    return score(name, given or CHOOSE_LEVEL, list(map(text_of, question.criteria)), ())


def _described(content: JsonValue) -> str:
    return "" if content is None else text_of(content)


# ---- errors --------------------------------------------------------------------------------------


@contextmanager
def fields_of_the_wire(questions: Mapping[str, Question]) -> Iterator[None]:
    """Name the fields of this wire in errors from inside, which are placed in a `DecisionBody`."""
    try:
        yield
    except ServiceError as error:
        if not error.location:
            raise
        raise error.placed(wire_place(error.location, questions)) from error


def wire_place(location: Location, questions: Mapping[str, Question]) -> Location:
    """Return the place in this wire of a place in a `DecisionBody`.

    Behind the name of a question comes its type, as in FastAPI's own errors.
    """
    head, *rest = location
    if head == "input":
        return ("state",)
    if location[:2] == ("abmll", "cases") and location[3:4] == ("input",):
        return (*location[:3], "state")
    if head != "questions" or not rest:
        return location
    name, question = list(questions.items())[int(rest[0])]
    return ("questions", name, question.type)
