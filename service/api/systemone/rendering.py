"""From the engine's answers to those of System One."""

from __future__ import annotations

from service.api.decision_answers import TypedAnswer, answers_of, request_details
from service.api.decision_requests import DecisionBody
from service.api.systemone import wire
from service.engine.answers import Decided


def system_one_response(
    decided: Decided, asked: DecisionBody, body: wire.SystemOneRequest
) -> wire.SystemOneResponse:
    """Make the answer to `body`, whose questions are those of `asked`."""
    answers = zip(body.questions.items(), answers_of(decided, asked), strict=True)
    return wire.SystemOneResponse(
        model=decided.model,
        answers={name: _answer(question, answer) for (name, question), answer in answers},
        usage=wire.Usage(input_tokens=decided.tokens),
        abmll=request_details(decided, asked),
    )


def _answer(
    question: wire.Noul | wire.Choice | wire.Score, answer: TypedAnswer
) -> wire.NoulAnswer | wire.ChoiceAnswer | wire.ScoreAnswer:
    if isinstance(question, wire.Noul):
        return wire.NoulAnswer(noul=answer.probabilities[0], abmll=answer.details)
    if isinstance(question, wire.Choice):
        names = list(question.criteria)
        return wire.ChoiceAnswer(
            choice=names[answer.top],
            confidence=answer.confidence,
            probabilities=dict(zip(names, answer.probabilities, strict=True)),
            abmll=answer.details,
        )
    indices = list(map(str, range(len(question.criteria))))
    return wire.ScoreAnswer(
        score=answer.expected_level,
        confidence=answer.confidence,
        legend=dict(zip(indices, question.criteria, strict=True)),
        probabilities=dict(zip(indices, answer.probabilities, strict=True)),
        abmll=answer.details,
    )
