"""Typed questions of the native wire: to the engine's requests, and an adapter's own questions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from abmll.text.questions import TypedQuestion
from service import schemas
from service.api.decision_requests import CasesBody, DecisionBody, placed_errors
from service.api.native.requests import adapt_request
from service.api.typed_questions import LabelledInput, Location, by_name, typed_question
from service.engine.engine import Engine
from service.engine.requests import AdaptRequest
from service.errors import InvalidRequestError

_TOP: Location = ()


def adaptation(body: schemas.CreateAdapterRequest) -> AdaptRequest:
    """Return the adaptation to the body's support or cases.

    Raises `ServiceError`, placed, for cases that cannot be learned from.
    """
    if body.cases is None:
        return adapt_request(body)
    request = _cases_body(body).adaptation(body.adapt, body.seed, truncate=body.truncate)
    return replace(request, model=body.model)


def placed(body: schemas.CreateAdapterRequest) -> AbstractContextManager[None]:
    """Return a context that places errors from inside, which name examples, at the body's cases."""
    return nullcontext() if body.cases is None else placed_errors(_cases_body(body))


def _cases_body(body: schemas.CreateAdapterRequest) -> CasesBody:
    return CasesBody(list(map(typed_question, body.questions or ())), _labelled(body.cases or ()), _TOP)


def _labelled(cases: Sequence[schemas.Case]) -> list[LabelledInput]:
    return [LabelledInput(case.input, case.answers) for case in cases]


async def decision_body(body: schemas.DecideRequest, engine: Engine) -> DecisionBody:
    """Return what `body` asks for, with the adapter's own questions where it names them.

    Its model is the version of the name then, since a later one may have other questions. Raises
    `InvalidRequestError`, placed, for questions that the adapter does not have, and
    `UnknownAdapterError` or `UnknownModelError` for an adapter that there is not.
    """
    model, own = body.model, list[TypedQuestion]()
    if body.questions is None or any(isinstance(question, str) for question in body.questions):
        model, own = await _own_questions(body, engine)
    questions = own if body.questions is None else _questions(body.questions, own)
    by_name(questions)
    return DecisionBody(
        model=model,
        inputs=tuple(body.inputs),
        questions=questions,
        extras=body,
        labelled=None if body.cases is None else _labelled(body.cases),
        below=_TOP,
    )


def _questions(
    given: Sequence[str | schemas.DescribedPredicate | schemas.Choice | schemas.Score],
    own: Sequence[TypedQuestion],
) -> list[TypedQuestion]:
    named = by_name(own)
    found = []
    for number, question in enumerate(given):
        if isinstance(question, str) and question not in named:
            known = ", ".join(map(repr, list(named)[:10])) + (", ..." if len(named) > 10 else "")
            message = f"the adapter has no question {question!r:.80}: it has {known}"
            raise InvalidRequestError(message).placed(("questions", number))
        found.append(named[question] if isinstance(question, str) else typed_question(question))
    return found


async def _own_questions(
    body: schemas.DecideRequest, engine: Engine
) -> tuple[str | None, list[TypedQuestion]]:
    """Return what `model` names, and the questions that the adapter has for its own."""
    adapter_id, model = None, body.model
    if model is not None:
        adapter_id, model = await engine.resolve_model(model)
    adapter_id = adapter_id or body.adapter_id
    if adapter_id is None:
        message = "the base model has no questions of its own: give whole questions, or name an adapter"
        raise InvalidRequestError(message).placed(("questions",))
    questions = (await engine.adapter(adapter_id)).manifest.support.questions
    if not questions:
        message = f"adapter {adapter_id} was not made from cases, so it has no questions of its own: give whole ones"
        raise InvalidRequestError(message).placed(("questions",))
    return model, list(questions)
