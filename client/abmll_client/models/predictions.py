"""Answers to inputs."""

from __future__ import annotations

from typing import Literal

from abmll_client.models.answer import Answer

Cache = Literal["hit", "miss", "joined"]
"""Whether the server had what was asked for, made it, or was making it for another request."""


class OptionProbability(Answer):
    """The probability of one option: its mean and standard deviation over posterior samples."""

    option: str
    probability: float
    std: float


class UncertaintyReport(Answer):
    """What the posterior samples say about an answer; entropies in nats."""

    total_entropy: float  # of the distribution averaged over samples
    expected_entropy: float  # mean over the samples' distributions
    mutual_information: float  # the first less the second, corrected for the number of samples
    mc_standard_error: float  # of the confidence, from sampling
    typicality: float | None = None  # p-value: how like the support the input is; fixed classes
    answerable: float | None = None  # probability that the input tells the answer; one question


class AnswerCluster(Answer):
    """Free-text answers that mean the same."""

    answer: str  # the most probable member
    probability: float  # of all members together
    share: float  # that probability over the sum of all clusters' probabilities
    members: list[str]  # the most probable first


class TextReport(Answer):
    """What is known of a free-text answer; logarithms and entropies in nats."""

    sequence_logprob: float
    logprob_per_token: float
    tokens: int  # of the answer, its end included
    complete: bool  # False where `max_new_tokens` cut it off
    semantic_entropy: float
    expected_semantic_entropy: float
    semantic_mutual_information: float
    clusters: list[AnswerCluster]  # the most probable first


class PredictionSet(Answer):
    """Options that hold the right one with probability `coverage`, over calibration and input."""

    options: list[str]  # the most probable first
    alpha: float
    valid_for_alpha: bool  # False: too few labels for `alpha`, so the set holds all options
    coverage: float
    n: int  # labelled examples behind it
    note: str


class Prediction(Answer):
    """The answer to one input. `answer` is given even where the decision is to abstain."""

    index: int  # of the input in the request
    answer: str
    confidence: float
    confidence_kind: str  # `predictive` or `calibrated`
    margin: float  # probability of the answer less that of the runner-up
    decision: Literal["answer", "abstain"]
    abstain_reason: str | None = None  # the first condition of the gate that failed
    distribution: list[OptionProbability]
    uncertainty: UncertaintyReport
    samples: int  # posterior samples used
    text: TextReport | None = None  # of free text only
    prediction_id: str | None = None  # to send its label by, as feedback
    explored: bool | None = None  # whether it is in the random sample to be labelled
    prediction_set: PredictionSet | None = None


class Usage(Answer):
    """Tokens: of the adapter's support, of the inputs with their options, and generated."""

    support_tokens: int
    prompt_tokens: int
    completion_tokens: int


class Timings(Answer):
    """Seconds; zero for what was not needed."""

    queue_seconds: float
    adapt_seconds: float
    predict_seconds: float
    total_seconds: float


class GateReport(Answer):
    """The calibrated gate that decided: answers of at least confidence `threshold` are given."""

    calibration_id: str
    version: int
    threshold: float
    n: int  # labelled outcomes that the threshold comes from
    coverage: float  # fraction of inputs to expect above the threshold
    target_error: float | None = None
    delta: float | None = None
    error_upper_bound: float | None = None  # Clopper-Pearson, at most `target_error`
    target_coverage: float | None = None


class PredictResponse(Answer):
    """The answer to a predict request.

    A repeated request gets the same fields above `cache`, as long as the adapter's calibration and
    diagnosis are the same.
    """

    adapter_id: str
    model: str | None = None  # version of the name that answered, if the request named one
    predictions: list[Prediction]
    usage: Usage
    seed: int
    warnings: list[str]
    gate: GateReport | None = None
    calibrator: str | None = None  # `held_out`: the temperature that the adapter's own folds chose
    cache: Cache
    refines_to: str | None = None  # the adapter that is made now in the background (`adapt.refine`)
    timings: Timings
    request_id: str


class AdaptStep(Answer):
    """In a stream: one gradient step is made."""

    step: int  # from 1
    steps: int
    loss: float  # mean of the step, in nats an example


class AdapterFound(Answer):
    """In a stream: the adapter is there."""

    adapter_id: str
    cache: Cache
    warnings: list[str]
