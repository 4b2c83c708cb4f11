"""Renders typed questions and their answers as the native wire. Decides nothing."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from abmll.text.questions import TypedQuestion
from abmll.text.tasks import CANNOT_TELL
from service import schemas
from service.api.decision_answers import TypedAnswer, answers_of, request_details
from service.api.decision_requests import DecisionBody
from service.engine.answers import Decided

if TYPE_CHECKING:
    from model_store.adapters.manifest import SupportRecord


def decide_response(decided: Decided, asked: DecisionBody, request_id: str) -> schemas.DecideResponse:
    """Render the answers to the questions of `asked`, input by input."""
    return schemas.DecideResponse(
        model=decided.model,
        results=[
            schemas.DecidedInput(
                index=index,
                answers={a.typed.question.name: _answer(a) for a in answers_of(decided, asked, index)},
            )
            for index in range(len(decided.rows))
        ],
        tokens=decided.tokens,
        request_id=request_id,
        **dict(request_details(decided, asked)),
    )


def _answer(answer: TypedAnswer) -> schemas.QuestionAnswer:
    question = answer.typed.question
    values = called(answer.typed)
    return schemas.QuestionAnswer(
        **dict(answer.details),
        type=question.kind,
        answer=values[answer.top],
        confidence=answer.confidence,
        margin=answer.decided.prediction.predictive.margin,
        probabilities=[
            schemas.ValueProbability(value=value, probability=p)
            for value, p in zip(values, answer.probabilities, strict=True)
        ],
        expected_level=answer.expected_level if question.kind == "score" else None,
    )


def called(typed: TypedQuestion) -> list[str | bool]:
    """Return what this wire calls the options: levels by their labels."""
    options = typed.question.options
    return [
        value if isinstance(value, str | bool) else option
        for value, option in zip(typed.values, options, strict=True)
    ]


def adapter_questions(support: SupportRecord) -> list[schemas.AdapterQuestion] | None:
    """Render the adapter's own questions, with the number of cases that answer each; None for none."""
    if not support.questions:
        return None
    answered, declined = Counter[object](), Counter[object]()
    for example in support.examples:
        key = (example.instruction, frozenset(example.options))
        answered[key] += 1
        declined[key] += example.declinable and example.output == CANNOT_TELL
    return [
        schemas.AdapterQuestion(
            question=question_object(typed).model_dump(exclude_none=True),
            cases=answered[typed.question.key],
            cannot_tell=declined[typed.question.key],
        )
        for typed in support.questions
    ]


def question_object(typed: TypedQuestion) -> schemas.DescribedPredicate | schemas.Choice | schemas.Score:
    """Render a question as `POST /v1/decide` takes it."""
    question = typed.question
    name, instructions = question.name, question.instruction
    described = question.descriptions or ("",) * len(question.options)
    if question.kind == "predicate":
        yes, no = described
        criteria = schemas.Criteria(yes=yes, no=no) if yes or no else None
        return schemas.DescribedPredicate(
            type="predicate", name=name, instructions=instructions, criteria=criteria
        )
    rows = list(zip(called(typed), (text or None for text in described), strict=True))
    if question.kind == "choice":
        choices = [schemas.ChoiceOption(value=value, description=text) for value, text in rows]
        return schemas.Choice(type="choice", name=name, instructions=instructions, choices=choices)
    levels = [schemas.Level(label=str(label), description=text) for label, text in rows]
    return schemas.Score(type="score", name=name, instructions=instructions, levels=levels)
