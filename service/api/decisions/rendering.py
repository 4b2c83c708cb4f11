"""From the engine's answers to OpenAI's decision."""

from __future__ import annotations

from service import schemas
from service.api.decision_answers import TypedAnswer, answers_of, request_details
from service.api.decision_requests import DecisionBody
from service.api.decisions import wire
from service.engine.answers import Decided


def decision(decided: Decided, asked: DecisionBody, body: wire.DecisionRequest) -> wire.Decision:
    """Make the decision that answers `body`, whose questions are those of `asked`."""
    return wire.Decision(
        model=decided.model,
        answers=[
            _answer(question, answer, refuse=body.abmll.refuse)
            for question, answer in zip(body.questions, answers_of(decided, asked), strict=True)
        ],
        usage=wire.Usage(input_tokens=decided.tokens, total_tokens=decided.tokens),
        abmll=request_details(decided, asked),
    )


def _answer(
    question: schemas.Predicate | schemas.Choice | wire.Score, answer: TypedAnswer, *, refuse: bool
) -> wire.PredicateAnswer | wire.ChoiceAnswer | wire.ScoreAnswer | wire.RefusalAnswer:
    name, details = question.name, answer.details
    if refuse and details.decision == "abstain":
        return wire.RefusalAnswer(name=name, abmll=details)
    if isinstance(question, schemas.Predicate):
        return wire.PredicateAnswer(name=name, probability=answer.probabilities[0], abmll=details)
    if isinstance(question, schemas.Choice):
        return wire.ChoiceAnswer(
            name=name,
            choice=question.choices[answer.top].value,
            confidence=answer.confidence,
            probabilities=[
                schemas.ValueProbability(value=option.value, probability=p)
                for option, p in zip(question.choices, answer.probabilities, strict=True)
            ],
            abmll=details,
        )
    return wire.ScoreAnswer(
        name=name,
        score=answer.expected_level,
        confidence=answer.confidence,
        probabilities=[
            wire.LevelProbability(value=index, label=level.label, probability=p)
            for index, (level, p) in enumerate(zip(question.levels, answer.probabilities, strict=True))
        ],
        abmll=details,
    )
