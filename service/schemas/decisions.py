"""What the surfaces of typed questions add to their wires, below `abmll`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from service.schemas.fields import Adapt, RefinesTo, Samples, Seed, Truncate
from service.schemas.predictions import Cache, GateReport, Timings
from service.schemas.requests import Gate
from service.schemas.wire import WireModel


def _answer(value: Any) -> Any:
    if value is not None and not isinstance(value, str | bool | int):
        raise ValueError("an answer is a text, a boolean, the index of a level, or null")
    return value


CaseAnswer = Annotated[
    Any,
    AfterValidator(_answer),
    WithJsonSchema({"anyOf": [{"type": kind} for kind in ("string", "boolean", "integer", "null")]}),
]
"""What a wire calls an option, or null for an input that does not tell the answer."""


class DecideOptions(WireModel):
    """Parameters of a decision beyond its questions and its input."""

    adapter_id: str | None = Field(
        default=None, description="Id of the adapter that answers; `model` may name it instead."
    )
    adapt: Adapt | None = Field(default=None, description="How to fit; only together with `cases`.")
    samples: Samples = 16
    seed: Seed = 0
    gate: Gate | None = Field(
        default=None, description="When to abstain, for every question; by default never."
    )
    truncate: Truncate = False


class AnswerDetails(WireModel):
    """Details of one answer, as in `POST /v1/predict`."""

    decision: Literal["answer", "abstain"]
    reason: str | None = Field(description="The first condition of the gate that is not met.")
    confidence_kind: str = Field(
        description="`calibrated`: the confidence is the probability that the answer is right, by the "
        "adapter's held-out cases. `predictive`: it is the answer's probability in the posterior predictive."
    )
    answerable: float | None = Field(
        description="Probability that the input tells the answer. The other probabilities are given that it does."
    )
    typicality: float | None = Field(
        description="How like the adapter's cases of this question the input is: a p-value."
    )
    mutual_information: float = Field(description="How much the samples disagree, in nats.")
    standard_error: float = Field(description="Standard error of the confidence, from sampling.")
    samples: int = Field(description="Posterior samples used.")
    learned: bool = Field(
        description="Whether the adapter has cases of this question; if not, it is answered zero-shot."
    )
    prediction_id: str | None = Field(
        default=None,
        description="Id to send the right answer with as feedback; only with a calibrated gate.",
    )
    explored: bool | None = Field(
        default=None,
        description="Whether the right answer is requested, by a random choice on which the decision does not depend.",
    )
    gate: GateReport | None = Field(
        default=None, description="The calibrated gate of this question, if one decided."
    )


class DecisionDetails(WireModel):
    """Details of a request's answers."""

    adapter_id: str | None = Field(description="The adapter that answered; null if none did.")
    seed: int
    cache: Cache
    refines_to: RefinesTo = None
    warnings: list[str]
    timings: Timings
