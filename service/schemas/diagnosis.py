"""An adapter as its own support shows it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.schemas.predictions import Cache, Timings
from service.schemas.wire import WireModel


class DiagnoseRequest(WireModel):
    """How to estimate an adapter on its own support."""

    folds: int | None = Field(
        default=None,
        ge=2,
        description="Parts of the support that are held out in turn; at least one an example leaves each out by itself. By "
        "default up to 16 examples are each left out, and more make 8 folds.",
    )
    samples: int = Field(default=8, ge=0, le=64, description="Posterior samples of each held-out answer.")


class AccuracyEstimate(WireModel):
    """Answers to labelled examples, counted."""

    n: int = Field(description="Examples.")
    correct: int
    accuracy: float
    low: float = Field(description="Lower end of the accuracy's interval.")
    high: float = Field(description="Upper end of the accuracy's interval.")
    nll: float = Field(description="Mean negative log-likelihood of the labels, in nats.")
    nll_standard_error: float


class AdapterComparison(WireModel):
    """The adapter against something else, on the same held-out examples."""

    helped: Literal["yes", "no", "unclear"] = Field(
        description="Whether the interval of the gain lies above zero, below it, or on both sides."
    )
    log_likelihood_gain: float = Field(description="Mean over examples, in nats.")
    standard_error: float
    gained: int = Field(description="Examples that only the adapter answers right.")
    lost: int = Field(description="Examples that only the other answers right.")
    p_value: float = Field(description="McNemar's exact test of the two, two-sided.")


class PosteriorMovement(WireModel):
    """How far adaptation moved the posterior."""

    parameters: int = Field(description="Adapted weights.")
    kl_nats: float | None = Field(default=None, description="KL(task posterior || global posterior).")
    kl_nats_per_parameter: float | None = None
    kl_nats_floored: float | None = Field(
        default=None,
        description="The same KL with no standard deviation below an untrained posterior's: weights with almost none do not "
        "decide it.",
    )
    relative_mean_change: float | None = Field(
        default=None, description="Norm of the change of the mean update over that of the global mean update."
    )


class SuspectExample(WireModel):
    """A support example whose held-out answer contradicts its label with high probability."""

    index: int = Field(description="Position in the support.")
    label: str
    answer: str
    probability: float


class ConflictingExamples(WireModel):
    """Support examples with one input and different labels."""

    indices: list[int]
    labels: list[str]


class GuessEstimate(WireModel):
    """What ignoring the input gives."""

    accuracy: float
    nll: float


class VerdictReason(WireModel):
    """Why."""

    code: str = Field(description="Stable name of the rule.")
    message: str


class Diagnosis(WireModel):
    """An adapter as its own support shows it: adapted to some examples, asked for the others."""

    asked_folds: int | None = Field(
        default=None, description="Folds that were asked for; null is the default."
    )
    folds: int
    samples: int
    held_out: AccuracyEstimate = Field(description="Adapters fitted to the other folds.")
    prior: AccuracyEstimate = Field(
        description="The global posterior's mean, without adaptation, on the same examples."
    )
    in_context: AccuracyEstimate = Field(
        description="The same with the other folds' examples in the prompt, as many as fit."
    )
    over_prior: AdapterComparison
    over_in_context: AdapterComparison
    movement: PosteriorMovement
    guess: GuessEstimate
    suspects: list[SuspectExample]
    conflicts: list[ConflictingExamples]
    unseen_options: list[str] = Field(description="Options that no support example has as its label.")
    verdict: Literal["healthy", "weak", "unfit"]
    reasons: list[VerdictReason]
    level: float = Field(description="Of every interval.")


class DiagnoseResponse(Diagnosis):
    """A diagnosis, and how this request came by it."""

    adapter_id: str
    cache: Cache = Field(
        description="Whether the diagnosis was there (hit), was made (miss) or was being made (joined)."
    )
    timings: Timings
    request_id: str
