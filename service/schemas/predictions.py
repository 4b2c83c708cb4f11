"""Answers to inputs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.schemas.fields import RefinesTo, is_none
from service.schemas.wire import WireModel

Cache = Literal["hit", "miss", "joined"]


class OptionProbability(WireModel):
    """The probability of one option in the posterior predictive."""

    option: str
    probability: float = Field(description="Average over samples.")
    std: float = Field(description="Standard deviation over samples.")


class UncertaintyReport(WireModel):
    """Uncertainty of the answer, from the samples. Entropies are in nats."""

    total_entropy: float = Field(description="Entropy of the averaged distribution.")
    expected_entropy: float = Field(description="Average entropy of the sampled distributions.")
    mutual_information: float = Field(
        description="Total minus expected entropy, corrected for the number of samples."
    )
    mc_standard_error: float = Field(description="Standard error of the confidence, from sampling.")
    typicality: float | None = Field(
        default=None,
        description="How like the adapter's examples the input is: a p-value, with n examples at "
        "least 1 / (n + 1). Only for adapters with fixed classes.",
    )
    answerable: float | None = Field(
        default=None,
        exclude_if=is_none,
        description="Probability that the input tells the answer; the others are given that it does. Only "
        "for adapters of one question with cases.",
    )


class AnswerCluster(WireModel):
    """A cluster of free-text answers that mean the same."""

    answer: str = Field(description="The most probable answer of the cluster.")
    probability: float = Field(
        description="Probability of all its answers in the posterior predictive. All clusters "
        "together have at most 1: the rest belongs to texts that no sample wrote."
    )
    share: float = Field(description="Its probability divided by that of all clusters.")
    members: list[str] = Field(description="The answers, the most probable first.")


class TextReport(WireModel):
    """Details of a free-text answer. Logarithms and entropies are in nats."""

    sequence_logprob: float = Field(
        description="Log of the probability of the whole answer; the probability is averaged over samples."
    )
    logprob_per_token: float = Field(description="`sequence_logprob` divided by `tokens`.")
    tokens: int = Field(description="Tokens of the answer, with its end token.")
    complete: bool = Field(description="False where `max_new_tokens` cut it off.")
    semantic_entropy: float = Field(description="Entropy of the `share` of the clusters.")
    expected_semantic_entropy: float = Field(
        description="Average over samples of this entropy within one sample."
    )
    semantic_mutual_information: float = Field(
        description="How much the samples disagree about the meaning: `semantic_entropy` minus "
        "`expected_semantic_entropy`, corrected for the number of samples."
    )
    clusters: list[AnswerCluster] = Field(
        description="All answers by meaning, the most probable cluster first."
    )


class PredictionSet(WireModel):
    """Options that contain the right one with the guaranteed probability.

    The probability is over calibration and input together.
    """

    options: list[str] = Field(description="Most probable first.")
    alpha: float
    valid_for_alpha: bool = Field(
        description="Whether the calibration has enough labels for `alpha`; if not, only the set "
        "of all options is valid."
    )
    coverage: float = Field(description="Guaranteed probability, at least 1 - alpha.")
    n: int = Field(description="Labelled examples of the calibration.")
    note: str


class Prediction(WireModel):
    """The answer to one input."""

    index: int = Field(description="Position of the input in the request.")
    answer: str = Field(
        description="The most probable option, or a text of the most probable meaning; present "
        "also when abstaining."
    )
    confidence: float = Field(description="Confidence of the answer, between 0 and 1.")
    confidence_kind: str = Field(
        description="Kind of `confidence`. `predictive` is the answer's probability in the "
        "posterior predictive. `calibrated` is the probability that the answer is "
        "right, by the temperature that the adapter's held-out examples chose."
    )
    margin: float = Field(description="Probability of the answer minus that of the runner-up.")
    decision: Literal["answer", "abstain"]
    abstain_reason: str | None = Field(
        default=None, description="The first condition of the gate that is not met."
    )
    distribution: list[OptionProbability]
    uncertainty: UncertaintyReport
    samples: int = Field(description="Posterior samples used.")
    text: TextReport | None = Field(default=None, description="Details of free text; absent with options.")
    prediction_id: str | None = Field(
        default=None, description="Id with which its label can be sent as feedback."
    )
    explored: bool | None = Field(
        default=None,
        description="Whether its label is requested, by a random choice on which the decision does "
        "not depend.",
    )
    prediction_set: PredictionSet | None = None


class Usage(WireModel):
    """Numbers of tokens."""

    support_tokens: int = Field(description="Tokens of the adapter's support.")
    prompt_tokens: int = Field(description="Tokens of the inputs and their options.")
    completion_tokens: int = Field(description="Tokens generated, over all samples.")


class Timings(WireModel):
    """Times in seconds; zero for a step that was not needed."""

    queue_seconds: float
    adapt_seconds: float
    predict_seconds: float
    total_seconds: float


class GateReport(WireModel):
    """The calibrated gate that made the decisions."""

    calibration_id: str
    version: int
    threshold: float = Field(description="Answers of at least this confidence are given.")
    n: int = Field(description="Labelled outcomes from which the threshold comes.")
    coverage: float = Field(
        description="Expected fraction of inputs above the threshold: observed, or for a target "
        "coverage guaranteed."
    )
    target_error: float | None = None
    delta: float | None = None
    error_upper_bound: float | None = Field(
        default=None, description="Clopper-Pearson bound of the error, at most `target_error`."
    )
    target_coverage: float | None = None


class PredictResponse(WireModel):
    """Answers to the inputs.

    All fields above `cache` are equal, byte for byte, for equal requests under the same
    calibration.
    """

    adapter_id: str
    model: str | None = Field(
        default=None,
        description="Version of the name that answered, such as `tickets@3`, if the request named one.",
    )
    predictions: list[Prediction]
    usage: Usage
    seed: int
    warnings: list[str]
    gate: GateReport | None = None
    calibrator: str | None = Field(
        default=None,
        description="What calibrated the confidences: `held_out`, the adapter's held-out examples.",
    )
    cache: Cache = Field(
        description="`hit`: the adapter existed; `miss`: this request made it; `joined`: another "
        "request was making it."
    )
    refines_to: RefinesTo = None
    timings: Timings
    request_id: str


class AdaptStep(WireModel):
    """Event of a stream: one gradient step is done."""

    step: int = Field(description="Number of the step, from 1.")
    steps: int
    loss: float = Field(description="Mean loss of the step, in nats an example.")


class AdapterFound(WireModel):
    """Event of a stream: the adapter exists."""

    adapter_id: str
    cache: Cache
    warnings: list[str]
