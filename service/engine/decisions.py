"""Typed questions as predictions: from a `DecideRequest` to a `PredictRequest`, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from abmll.errors import AbmllError
from abmll.text.questions import Question, check_question
from service.engine.requests import DecideRequest, PredictRequest
from service.errors import LimitExceededError, ServiceError, from_exception, over_limit

if TYPE_CHECKING:
    from abmll.text.tasks import Example
    from service.settings import Settings

T = TypeVar("T")


def admit_questions(request: DecideRequest, settings: Settings) -> PredictRequest:
    """Return the request as one query for each input and question, input by input.

    Raises `ServiceError` for questions that say nothing, have options that cannot be told apart, or
    are too many.
    """
    for what, setting, count in (
        ("questions", "max_questions", len(request.questions)),
        ("inputs", "max_inputs", len(request.inputs)),
    ):
        if count > (limit := getattr(settings, setting)):
            raise LimitExceededError(over_limit(f"{count} {what}", limit, setting), what)
    for i, question in enumerate(request.questions):
        _check_lengths(question, f"questions[{i}]", settings)
        try:
            check_question(question)
        except AbmllError as error:
            raise from_exception(error, f"questions[{i}]") from error
    return PredictRequest(
        adapter=request.adapter,
        queries=tuple(question.query(text) for text in request.inputs for question in request.questions),
        settings=request.settings,
        gate=request.gate,
        confidence=request.confidence,
        truncate=request.truncate,
    )


def _check_lengths(question: Question, param: str, settings: Settings) -> None:
    longest = max(map(len, (question.instruction, *question.options, *question.descriptions)))
    if longest > settings.max_text_chars:
        found = f"a text of {longest} characters"
        raise LimitExceededError(over_limit(found, settings.max_text_chars, "max_text_chars"), param)


@contextmanager
def questions_named(request: DecideRequest) -> Iterator[None]:
    """Let errors from inside, which name queries, name inputs or questions of `request`."""
    try:
        yield
    except ServiceError as error:
        head, _, rest = (error.param or "").partition("]")
        if not head.startswith("inputs["):
            raise
        place, number = divmod(int(head.removeprefix("inputs[")), len(request.questions))
        of_question = rest.startswith((".options", ".question"))
        raise error.at(f"questions[{number}]" if of_question else f"inputs[{place}]{rest}") from error


def placed_in_examples(error: ServiceError, places: Sequence[str]) -> ServiceError:
    """Return an error that names an input of a prediction at the `places` of these in a request."""
    head, _, rest = (error.param or "").partition("]")
    if head == "inputs":
        return error.at(places[0].partition("[")[0])
    if not head.startswith("inputs["):
        return error
    return error.at(places[int(head.removeprefix("inputs["))] + rest)


def learned(questions: Sequence[Question], support: Sequence[Example]) -> list[bool]:
    """Return of each question whether `support` has examples of it."""
    known = {(example.instruction, frozenset(example.options)) for example in support}
    return [(question.instruction, frozenset(question.scored)) in known for question in questions]


def by_input(rows: Sequence[T], questions: int) -> list[tuple[T, ...]]:
    """Return `rows`, one for each input and question, in groups of one input."""
    return [tuple(rows[start : start + questions]) for start in range(0, len(rows), questions)]
