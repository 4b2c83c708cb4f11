"""The engine's answers to typed questions, in the numbers and details that both wires have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from fastapi import Request

from abmll.text.questions import TypedQuestion
from service import schemas
from service.api.decision_requests import DecisionBody, placed_errors
from service.api.http import engine_of, settings_of, unless_disconnected
from service.api.native.gate_rendering import gate_report
from service.engine.answers import Decided

if TYPE_CHECKING:
    from service.gating.decisions import DecidedPrediction
    from service.gating.records import CalibratedGate


async def decide(body: DecisionBody, request: Request) -> Decided:
    """Return the engine's answers to `body`; stop when the client leaves.

    Raises `ServiceError`, placed in `body`.
    """
    engine = engine_of(request)
    with placed_errors(body):
        asked = body.request(engine.served.base.id, *settings_of(request).aliases)
        work = engine.decide(asked)
        return await unless_disconnected(request, work)


@dataclass(frozen=True)
class TypedAnswer:
    """The answer to a question.

    `probabilities` are in the order of the question's values, and add up to 1.
    """

    typed: TypedQuestion
    probabilities: Sequence[float]
    decided: DecidedPrediction
    learned: bool
    gate: CalibratedGate | None = None

    @property
    def top(self) -> int:
        """Return the index of the most probable value, the first of several equal ones."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)

    @property
    def confidence(self) -> float:
        """Return the probability that the most probable value is right."""
        return self.decided.confidence.value

    @property
    def expected_level(self) -> float:
        """Return the mean of the levels' indices, each with its probability."""
        return sum(index * probability for index, probability in enumerate(self.probabilities))

    @property
    def details(self) -> schemas.AnswerDetails:
        """Return the details that no wire but ours has."""
        decided, prediction = self.decided, self.decided.prediction
        uncertainty = prediction.predictive.uncertainty
        return schemas.AnswerDetails(
            decision=decided.decision,
            reason=decided.abstain_reason,
            confidence_kind=decided.confidence.kind,
            answerable=prediction.answerable,
            typicality=prediction.typicality,
            mutual_information=uncertainty.mutual_information,
            standard_error=uncertainty.mc_standard_error,
            samples=prediction.predictive.samples,
            learned=self.learned,
            prediction_id=decided.prediction_id,
            explored=decided.label_asked,
            gate=gate_report(self.gate) if self.gate else None,
        )


def answers_of(decided: Decided, body: DecisionBody, number: int = 0) -> list[TypedAnswer]:
    """Return the answers about the body's input at `number`, in the order of its questions."""
    answers = []
    row = decided.rows[number]
    gates = decided.calibrated_gates or [None] * len(row)
    for typed, answer, learned, gate in zip(body.questions, row, decided.learned, gates, strict=True):
        predictive = answer.prediction.predictive
        by_option = dict(zip(predictive.options, predictive.probabilities, strict=True))
        probabilities = [by_option[option] for option in typed.question.options]
        answers.append(TypedAnswer(typed, probabilities, answer, learned, gate))
    return answers


def request_details(decided: Decided, body: DecisionBody) -> schemas.DecisionDetails:
    """Return the details of a request's answers."""
    return schemas.DecisionDetails(
        adapter_id=decided.adapter_id,
        seed=body.extras.seed,
        cache=decided.cache.value,
        refines_to=decided.refines_to,
        warnings=list(decided.warnings),
        timings=schemas.Timings(**asdict(decided.timings)),
    )
