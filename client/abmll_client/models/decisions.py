"""Answers to typed questions."""

from __future__ import annotations

from typing import Literal

from abmll_client.models.answer import Answer
from abmll_client.models.predictions import Cache, GateReport, Timings


class ValueProbability(Answer):
    """The probability of one value."""

    value: str | bool
    probability: float


class QuestionAnswer(Answer):
    """The answer to one question about one input, given even where the decision is to abstain."""

    decision: Literal["answer", "abstain"]
    reason: str | None  # the first condition of the gate that failed
    confidence_kind: str  # `predictive` or `calibrated`
    answerable: float | None  # probability that the input tells the answer; the others are given that
    typicality: float | None  # p-value: how like the cases of this question the input is
    mutual_information: float  # how much the samples disagree, in nats
    standard_error: float  # of the confidence, from sampling
    samples: int  # posterior samples used
    learned: bool  # whether the adapter has cases of this question; if not, it is zero-shot
    prediction_id: str | None = None  # names it in feedback; only with a calibrated gate
    explored: bool | None = None  # whether its right answer is asked for, by a random choice
    gate: GateReport | None = None  # the calibrated gate of this question, if one decided
    type: Literal["predicate", "choice", "score"]
    answer: str | bool  # true or false, a value of a choice, the label of a level
    confidence: float  # probability of `answer`
    margin: float  # that less the probability of the runner-up
    probabilities: list[ValueProbability]  # in the order of the question's values
    expected_level: float | None  # mean of the levels' indices; of scores only


class DecidedInput(Answer):
    """The answers about one input, by the name of the question."""

    index: int  # of the input in the request
    answers: dict[str, QuestionAnswer]


class DecideResponse(Answer):
    """The answers to each question about each input."""

    adapter_id: str | None  # None where no adapter answered
    seed: int
    cache: Cache
    refines_to: str | None = None  # the adapter that is made now in the background (`adapt.refine`)
    warnings: list[str]
    timings: Timings
    model: str  # what answered: the base model, an adapter, or a version of a name
    results: list[DecidedInput]  # in the order of the inputs
    tokens: int  # that were read, each counted once
    request_id: str
