"""Answers to inputs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.schemas.wire import WireModel

Cache = Literal["hit", "miss", "joined"]


class OptionProbability(WireModel):
    """One option's share of the posterior predictive."""

    option: str
    probability: float = Field(description="Average over samples.")
    std: float = Field(description="Standard deviation over samples.")


class UncertaintyReport(WireModel):
    """What the samples say about the answer; entropies in nats."""

    total_entropy: float = Field(description="Entropy of the averaged distribution.")
    expected_entropy: float = Field(description="Average entropy of the sampled distributions.")
    mutual_information: float = Field(
        description="Total less expected entropy, corrected for the number of samples."
    )
    mc_standard_error: float = Field(description="Standard error of the confidence, from sampling.")
    typicality: float | None = Field(
        default=None,
        description="How like the adapter's examples the input is: a p-value, of n examples at least 1 / (n + 1). "
        "None but for adapters with fixed classes.",
    )


class AnswerCluster(WireModel):
    """Free-text answers that mean the same."""

    answer: str = Field(description="The most probable of them.")
    probability: float = Field(
        description="What the posterior predictive gives to all of them; the rest is also that of texts nobody wrote."
    )
    share: float = Field(description="Its part of all clusters' probability.")
    members: list[str] = Field(description="The answers, the most probable first.")


class TextReport(WireModel):
    """What is known of a free-text answer; logarithms and entropies in nats."""

    sequence_logprob: float = Field(
        description="Log of the whole answer's probability, which is averaged over samples."
    )
    logprob_per_token: float = Field(description="The same by the answer's tokens.")
    tokens: int = Field(description="Tokens of the answer, its end included.")
    complete: bool = Field(description="False where `max_new_tokens` cut it off.")
    semantic_entropy: float = Field(description="Entropy of the clusters' shares.")
    expected_semantic_entropy: float = Field(description="Average of the same within a sample.")
    semantic_mutual_information: float = Field(
        description="How much the samples disagree about the meaning: the first less the second entropy, "
        "corrected for the number of samples."
    )
    clusters: list[AnswerCluster] = Field(description="All answers by meaning, the most probable first.")


class PredictionSet(WireModel):
    """Options that hold the right one with the promised probability, over calibration and input together."""

    options: list[str] = Field(description="Most probable first.")
    alpha: float
    valid_for_alpha: bool = Field(
        description="Whether the calibration has enough labels for `alpha`; else the only valid set is all options."
    )
    coverage: float = Field(description="The probability that is guaranteed; at least 1 - alpha.")
    n: int = Field(description="Labelled examples behind it.")
    note: str


class Prediction(WireModel):
    """The answer to one input."""

    index: int = Field(description="Position of the input in the request.")
    answer: str = Field(
        description="The most probable option, or text of the most probable meaning; given even when abstaining."
    )
    confidence: float = Field(description="How sure the answer is, between 0 and 1.")
    confidence_kind: str = Field(
        description="What `confidence` is: `predictive`, the answer's share of the posterior predictive, or `calibrated`, "
        "the probability that the answer is right, by the temperature that the adapter's own held-out examples chose."
    )
    margin: float = Field(description="Probability of the answer less that of the runner-up.")
    decision: Literal["answer", "abstain"]
    abstain_reason: str | None = Field(
        default=None, description="The first condition of the gate that fails."
    )
    distribution: list[OptionProbability]
    uncertainty: UncertaintyReport
    samples: int = Field(description="Posterior samples used.")
    text: TextReport | None = Field(default=None, description="Of free text only.")
    prediction_id: str | None = Field(default=None, description="To send its label by, as feedback.")
    explored: bool | None = Field(
        default=None,
        description="Whether it is of the random share whose labels are asked for. The decision does not depend on it.",
    )
    prediction_set: PredictionSet | None = None


class Usage(WireModel):
    """Tokens."""

    support_tokens: int = Field(description="Tokens of the adapter's support.")
    prompt_tokens: int = Field(description="Tokens of the inputs and their options.")
    completion_tokens: int = Field(description="Tokens generated, over all samples.")


class Timings(WireModel):
    """Seconds; zero for what was not needed."""

    queue_seconds: float
    adapt_seconds: float
    predict_seconds: float
    total_seconds: float


class GateReport(WireModel):
    """The calibrated gate that decided."""

    calibration_id: str
    version: int
    threshold: float = Field(description="Answers of at least this confidence are given.")
    n: int = Field(description="Labelled outcomes that the threshold comes from.")
    coverage: float = Field(
        description="Share of inputs to expect above it: observed, or for a target coverage guaranteed."
    )
    target_error: float | None = None
    delta: float | None = None
    error_upper_bound: float | None = Field(
        default=None, description="Clopper-Pearson bound behind the certificate, at most `target_error`."
    )
    target_coverage: float | None = None


class PredictResponse(WireModel):
    """Everything above `cache` is the same, byte for byte, whenever the same request is repeated under the same calibration."""

    adapter_id: str
    predictions: list[Prediction]
    usage: Usage
    seed: int
    warnings: list[str]
    gate: GateReport | None = None
    calibrator: str | None = Field(
        default=None,
        description="What calibrated the confidences: `held_out`, the adapter's own held-out examples.",
    )
    cache: Cache = Field(
        description="Whether the adapter was there (hit), was made (miss) or was being made (joined)."
    )
    timings: Timings
    request_id: str


class AdaptStep(WireModel):
    """Streamed: a gradient step is made."""

    step: int = Field(description="From 1.")
    steps: int
    loss: float = Field(description="Mean loss of the step, in nats an example.")


class AdapterFound(WireModel):
    """Streamed: the adapter is there."""

    adapter_id: str
    cache: Cache
    warnings: list[str]
