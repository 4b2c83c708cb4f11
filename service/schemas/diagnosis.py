"""Diagnoses: estimates of an adapter's quality from its own support."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from abmll.assurance.verdicts import ReasonCode
from service.schemas.predictions import Cache, Timings
from service.schemas.wire import WireModel


class DiagnoseRequest(WireModel):
    """How to estimate an adapter from its own support."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"folds": 4, "samples": 8}]})

    folds: int | None = Field(
        default=None,
        ge=2,
        description="Number of parts of the support that are held out in turn. As many as "
        "examples, or more, hold out each example by itself. The default holds out "
        "each of up to 16 examples, and 8 folds of more.",
    )
    samples: int = Field(default=8, ge=0, le=64, description="Posterior samples of each held-out answer.")


class AccuracyEstimate(WireModel):
    """Accuracy and likelihood on labelled examples."""

    n: int = Field(description="Number of examples.")
    correct: int
    accuracy: float
    low: float = Field(description="Lower end of the accuracy's interval.")
    high: float = Field(description="Upper end of the accuracy's interval.")
    nll: float = Field(description="Mean negative log-likelihood of the labels, in nats.")
    nll_standard_error: float


class AdapterComparison(WireModel):
    """The adapter compared with another predictor on the same held-out examples."""

    helped: Literal["yes", "no", "unclear"] = Field(
        description="Whether the interval of the gain is above zero, below zero, or contains it."
    )
    log_likelihood_gain: float = Field(description="Mean over examples, in nats.")
    standard_error: float
    gained: int = Field(description="Number of examples that only the adapter answers right.")
    lost: int = Field(description="Number of examples that only the other answers right.")
    p_value: float = Field(description="McNemar's exact test of the two numbers, two-sided.")


class PosteriorMovement(WireModel):
    """How far adaptation changed the posterior."""

    parameters: int = Field(description="Number of adapted weights.")
    kl_nats: float | None = Field(default=None, description="KL(task posterior || global posterior).")
    kl_nats_per_parameter: float | None = None
    kl_nats_floored: float | None = Field(
        default=None,
        description="The same KL with every standard deviation at least that of an untrained "
        "posterior, so that weights with almost none do not dominate it.",
    )
    relative_mean_change: float | None = Field(
        default=None,
        description="Norm of the change of the mean update, divided by the norm of the global mean update.",
    )


class SuspectExample(WireModel):
    """A support example whose held-out answer contradicts its label with high probability."""

    index: int = Field(description="Position in the support, from 0.")
    label: str
    answer: str
    probability: float


class ConflictingExamples(WireModel):
    """Support examples with one input and different labels."""

    indices: list[int]
    labels: list[str]


class GuessEstimate(WireModel):
    """Accuracy and likelihood of a guess that ignores the input."""

    accuracy: float
    nll: float


class VerdictReason(WireModel):
    """A reason of the verdict."""

    code: ReasonCode = Field(description="Stable name of the rule.")
    message: str


class AnswerableEstimate(WireModel):
    """How well `answerable` knows the inputs that do not tell an answer."""

    n: int = Field(description="Number of held-out examples.")
    untellable: int = Field(description="Number of these whose label is null.")
    auroc: float = Field(
        description="Probability that an input that tells the answer has the higher `answerable`; "
        "0.5 is chance."
    )
    brier: float = Field(description="Mean squared error of `answerable`.")
    guess_brier: float = Field(description="The same for the share of inputs that tell the answer.")


class RankedScore(WireModel):
    """Ranked probability score of a question with levels: 0 is best, and 1 worst."""

    score: float
    guess: float = Field(description="The same for the frequencies of the labels.")


class QuestionDiagnosis(WireModel):
    """Estimate of one question of an adapter; the fields are those of `Diagnosis`.

    Estimates are absent where no answer could be held out.
    """

    name: str | None = None
    instruction: str
    held_out: AccuracyEstimate | None = None
    prior: AccuracyEstimate | None = None
    in_context: AccuracyEstimate | None = None
    over_prior: AdapterComparison | None = None
    over_in_context: AdapterComparison | None = None
    guess: GuessEstimate | None = None
    answerable: AnswerableEstimate | None = Field(
        default=None, description="Only where some labels of held-out examples are null and some are not."
    )
    levels: RankedScore | None = Field(default=None, description="Only for a score.")
    suspects: list[SuspectExample]
    conflicts: list[ConflictingExamples]
    unseen_options: list[str]
    verdict: Literal["healthy", "weak", "unfit"]
    reasons: list[VerdictReason]


class Diagnosis(WireModel):
    """Estimate of an adapter from its own support.

    Each fold is predicted by an adapter of the other folds.
    """

    asked_folds: int | None = Field(default=None, description="Folds of the request; null is the default.")
    folds: int
    samples: int
    held_out: AccuracyEstimate = Field(
        description="Predictions of adapters that were fitted to the other folds."
    )
    prior: AccuracyEstimate = Field(
        description="Predictions of the global posterior's mean, without adaptation, for the same examples."
    )
    in_context: AccuracyEstimate = Field(
        description="The same with examples of the other folds in the prompt, as many as fit."
    )
    over_prior: AdapterComparison
    over_in_context: AdapterComparison
    movement: PosteriorMovement
    guess: GuessEstimate
    suspects: list[SuspectExample]
    conflicts: list[ConflictingExamples]
    unseen_options: list[str] = Field(description="Options that are the label of no support example.")
    verdict: Literal["healthy", "weak", "unfit"]
    reasons: list[VerdictReason]
    level: float = Field(description="Confidence level of every interval.")
    questions: list[QuestionDiagnosis] | None = Field(
        default=None,
        description="The same by question, for an adapter of cases. The other fields are about all "
        "questions together.",
    )


class DiagnoseResponse(Diagnosis):
    """A diagnosis, and how this request got it."""

    adapter_id: str
    cache: Cache = Field(
        description="`hit`: the diagnosis existed; `miss`: this request made it; `joined`: another "
        "request was making it."
    )
    timings: Timings
    request_id: str
