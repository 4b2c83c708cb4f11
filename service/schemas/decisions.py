"""Typed questions: requests of the native surface, and what the others have below `abmll`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, Tag, model_validator

from service.schemas import demo
from service.schemas.fields import Adapt, Confidence, RefinesTo, Samples, Seed, Truncate
from service.schemas.predictions import Cache, GateReport, Timings
from service.schemas.questions import KINDS_OF_QUESTIONS, Case, Question, kind_of_question
from service.schemas.requests import Gate
from service.schemas.wire import WireModel, one_of


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
    gates: dict[str, Gate] | None = Field(
        default=None,
        description="Gates by the name of the question, each in place of `gate`. `auto` samples then do "
        "not stop where a gate is decided.",
    )
    confidence: Confidence = None
    truncate: Truncate = False


def _kind_of_asked(value: Any) -> str | None:
    return "<name>" if isinstance(value, str) else "<question>" if kind_of_question(value) else None


AskedQuestion = Annotated[
    Annotated[str, Tag("<name>")] | Annotated[Question, Tag("<question>")],
    one_of(_kind_of_asked, f"{KINDS_OF_QUESTIONS}, or the name of one of the adapter's"),
]


class DecideRequest(DecideOptions):
    """Typed questions about each of some inputs.

    What answers is named by `adapter_id` or `model`, or made from `cases`, or else is the base
    model.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [demo.decide_body()]})

    model: str | None = Field(
        default=None,
        description="Id of the base model or of an adapter, or a name of one; by default the base model.",
    )
    questions: list[AskedQuestion] | None = Field(
        default=None,
        min_length=1,
        description="Questions with different names; of an adapter's own questions the names suffice. By "
        "default all of the adapter's own.",
    )
    cases: list[Case] | None = Field(
        default=None, min_length=1, description="Cases of these questions to learn from first."
    )
    inputs: list[str] = Field(min_length=1, description="Texts to ask about.")

    @model_validator(mode="after")
    def _cases_of_questions(self) -> Self:
        if self.cases is not None and self.questions is None:
            raise ValueError("cases need questions: what their answers answer")
        return self


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


class ValueProbability(WireModel):
    """The probability of one value."""

    value: str | bool
    probability: float


class QuestionAnswer(AnswerDetails):
    """The answer to one question about one input; given also where the gate abstains."""

    type: Literal["predicate", "choice", "score"]
    answer: str | bool = Field(
        description="The most probable value: true or false of a predicate, a value of a choice, the label "
        "of a level."
    )
    confidence: float = Field(description="Probability of `answer`.")
    margin: float = Field(description="Probability of the answer minus that of the runner-up.")
    probabilities: list[ValueProbability] = Field(description="In the order of the question's values.")
    expected_level: float | None = Field(
        description="Mean of the levels' indices, each with its probability; null if it is no score."
    )


class DecidedInput(WireModel):
    """The answers about one input."""

    index: int = Field(description="Position of the input in the request.")
    answers: dict[str, QuestionAnswer] = Field(description="By the name of the question.")


class DecideResponse(DecisionDetails):
    """The answers to each question about each input."""

    model: str = Field(description="What answered: the base model, an adapter, or a version of a name.")
    results: list[DecidedInput] = Field(description="In the order of the inputs.")
    tokens: int = Field(description="Tokens that were read, each counted once.")
    request_id: str
