"""The wire: what requests and answers look like. Types are strict, unknown fields are refused, numbers are finite.

How many rows, how long a text and how many steps are accepted is a matter of settings, checked at admission and
told by `GET /v1/limits`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from service import demo

MAX_SEED = 2**53 - 1  # the largest integer that every JSON client keeps exact


class WireModel(BaseModel):
    """Strict, closed and frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


# ---- requests -------------------------------------------------------------------------------------------------------


class SupportRow(WireModel):
    """A labelled example."""

    input: str = Field(description="The text.")
    output: str = Field(description="Its label, one of the options; or, without options, the text to answer.")
    options: list[str] | None = Field(
        default=None, description="Options of this example; wins over the request's."
    )


class InputRow(WireModel):
    """A text to answer that has its own options."""

    input: str = Field(description="The text.")
    options: list[str] | None = Field(
        default=None, description="Options of this input; wins over the request's."
    )


def _kind_of_input(value: Any) -> str:
    return "<row>" if isinstance(value, dict | InputRow) else "<text>"


Input = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[InputRow, Tag("<row>")],
    Discriminator(_kind_of_input),
]


class Adapt(WireModel):
    """How the posterior is fitted; what is left out takes the value the posterior was trained for."""

    steps: int | None = Field(default=None, ge=1, description="Gradient steps.")
    learning_rate: float | None = Field(default=None, gt=0, le=1, description="Learning rate of AdamW.")
    batch_size: int | None = Field(default=None, ge=1, description="Support examples a step.")
    beta: float | None = Field(
        default=None, ge=0, le=1000, description="Weight of KL(phi || theta); 0 leaves it out."
    )


class Gate(WireModel):
    """Below which certainty to abstain. Several conditions must all hold."""

    min_confidence: float | None = Field(
        default=None, ge=0, le=1, description="Least probability of the answer."
    )
    min_margin: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Least distance in probability between the answer and the runner-up.",
    )
    max_mutual_information: float | None = Field(
        default=None, ge=0, description="Most mutual information between answer and weights, in nats."
    )


_Model = Annotated[
    str | None, Field(description="Name of the base model; by default the one this server serves.")
]
_Options = Annotated[
    list[str] | None,
    Field(
        description="What to choose from, for every row that has no options of its own. None at all means free text.",
    ),
]
_Seed = Annotated[
    int,
    Field(
        ge=0,
        le=MAX_SEED,
        description="Of the adaptation and of the samples: same request and seed, same answer.",
    ),
]
_Truncate = Annotated[
    bool,
    Field(description="Cut the end of inputs that do not fit the context, instead of refusing the request."),
]
_Samples = Annotated[
    Annotated[int, Field(ge=0, le=64), Tag("<number>")] | Annotated[Literal["auto"], Tag("<auto>")],
    Discriminator(lambda value: "<auto>" if value == "auto" else "<number>"),
    Field(
        description="Posterior samples to average; 0 predicts with the posterior's mean only, "
        "`auto` draws until the gate can be decided."
    ),
]
_Support = Annotated[list[SupportRow], Field(description="Labelled examples of the task.")]

_PREDICT_EXAMPLE = demo.predict_body()
_CREATE_EXAMPLE = {key: _PREDICT_EXAMPLE[key] for key in ("support", "options", "seed")}


class CreateAdapterRequest(WireModel):
    """Adapt to a support set."""

    model_config = ConfigDict(json_schema_extra={"examples": [_CREATE_EXAMPLE]})

    model: _Model = None
    support: _Support
    options: _Options = None
    adapt: Adapt | None = Field(default=None, description="How to fit.")
    seed: _Seed = 0
    truncate: _Truncate = False


class PredictRequest(WireModel):
    """Answer inputs with an adapter, named by `adapter_id` or made from `support`; exactly one of the two."""

    model_config = ConfigDict(json_schema_extra={"examples": [_PREDICT_EXAMPLE]})

    model: _Model = None
    adapter_id: str | None = Field(default=None, description="Id of an adapter made before.")
    support: _Support | None = None
    inputs: list[Input] = Field(min_length=1, description="Texts to answer.")
    options: _Options = None
    samples: _Samples = 16
    seed: _Seed = 0
    adapt: Adapt | None = Field(default=None, description="How to fit; only together with `support`.")
    gate: Gate | None = Field(default=None, description="When to abstain; by default never.")
    truncate: _Truncate = False
    max_new_tokens: int = Field(default=32, ge=1, description="Longest free-text answer, in tokens.")
    confidence: Literal["predictive", "calibrated"] | None = Field(
        default=None,
        description="The kind of confidence that is wanted; by default a calibrated one where it can be had. `predictive` is "
        "the answer's raw share; `calibrated` is refused where the posterior has no calibrator, the samples are too few, or the "
        "answers are free text.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.adapter_id is None) == (self.support is None):
            raise ValueError("exactly one of adapter_id and support is needed")
        if self.adapter_id is not None and self.adapt is not None:
            raise ValueError("adapt applies to support: an adapter named by adapter_id is already fitted")
        return self


# ---- answers --------------------------------------------------------------------------------------------------------

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


class Prediction(WireModel):
    """The answer to one input."""

    index: int = Field(description="Position of the input in the request.")
    answer: str = Field(description="The most probable option; given even when abstaining.")
    confidence: float = Field(description="How sure the answer is, between 0 and 1.")
    confidence_kind: str = Field(
        description="What `confidence` is: `predictive`, the answer's share of the posterior predictive, or `calibrated`, "
        "the probability that the answer is right by the calibrator that ships with the posterior."
    )
    margin: float = Field(description="Probability of the answer less that of the runner-up.")
    decision: Literal["answer", "abstain"]
    abstain_reason: str | None = Field(
        default=None, description="The first condition of the gate that fails."
    )
    distribution: list[OptionProbability]
    uncertainty: UncertaintyReport
    samples: int = Field(description="Posterior samples used.")


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


class PredictResponse(WireModel):
    """Everything above `cache` is the same, byte for byte, whenever the same request is repeated.

    One thing changes it: a diagnosis made meanwhile, which calibrated confidences take into account.
    """

    adapter_id: str
    predictions: list[Prediction]
    usage: Usage
    seed: int
    warnings: list[str]
    calibrator: str | None = Field(
        default=None, description="Id of the calibrator behind calibrated confidences."
    )
    cache: Cache = Field(
        description="Whether the adapter was there (hit), was made (miss) or was being made (joined)."
    )
    timings: Timings
    request_id: str


class SupportSummary(WireModel):
    """What the adapter was made from."""

    n: int = Field(description="Labelled examples.")
    tokens: int
    per_label: dict[str, int] = Field(description="Examples by label; empty for free text.")


class BaseInfo(WireModel):
    """The base model, exactly."""

    id: str
    revision: str
    quantisation: str


class Diagnostics(WireModel):
    """How the fit went."""

    losses: list[float] = Field(description="Mean loss of each step, in nats an example.")
    steps: int


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


class Adapter(WireModel):
    """A task posterior that this server keeps."""

    id: str
    object: Literal["adapter"] = "adapter"
    status: Literal["ready"] = "ready"
    base: BaseInfo
    posterior: str
    support: SupportSummary
    options: list[str] = Field(
        description="Options that all examples share, which inputs without any take; else empty."
    )
    created: str = Field(description="When it was acknowledged, ISO 8601 in UTC.")
    diagnostics: Diagnostics
    diagnosis: Diagnosis | None = Field(default=None, description="The latest, once there is one.")
    warnings: list[str]


class CreateAdapterResponse(Adapter):
    """The adapter, and how this request came by it."""

    cache: Cache
    timings: Timings
    request_id: str


class DiagnoseRequest(WireModel):
    """How to estimate an adapter on its own support."""

    folds: int | None = Field(
        default=None,
        ge=2,
        description="Parts of the support that are held out in turn; at least one an example leaves each out by itself. By "
        "default up to 16 examples are each left out, and more make 8 folds.",
    )
    samples: int = Field(default=8, ge=0, le=64, description="Posterior samples of each held-out answer.")


class DiagnoseResponse(Diagnosis):
    """A diagnosis, and how this request came by it."""

    adapter_id: str
    cache: Cache = Field(
        description="Whether the diagnosis was there (hit), was made (miss) or was being made (joined)."
    )
    timings: Timings
    request_id: str


class AdapterList(WireModel):
    """A page of adapters, ordered by id."""

    object: Literal["list"] = "list"
    data: list[Adapter]
    has_more: bool


class PinnedAdapter(WireModel):
    """Whether an adapter stays in memory."""

    id: str
    object: Literal["adapter"] = "adapter"
    pinned: bool


class DeletedAdapter(WireModel):
    """Confirmation."""

    id: str
    object: Literal["adapter"] = "adapter"
    deleted: Literal[True] = True


class ModelCard(WireModel):
    """A base model with its global posterior."""

    id: str
    object: Literal["model"] = "model"
    owned_by: Literal["abmll-serve"] = "abmll-serve"
    base: BaseInfo
    posterior: str
    max_model_len: int = Field(description="Context, in tokens.")
    calibrator: str | None = Field(
        default=None, description="Id of the calibrator of the posterior's confidences."
    )


class ModelList(WireModel):
    """The models this server serves."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class LimitsReport(WireModel):
    """What this server accepts; beyond `max_body_bytes` 413, beyond the others 422."""

    max_body_bytes: int
    max_support: int
    max_inputs: int
    max_options: int
    max_text_chars: int
    max_prompt_tokens: int
    max_samples: int
    max_folds: int
    max_steps: int
    max_new_tokens: int
    queue_limit: int
    deadline_seconds: float


class WorkerReport(WireModel):
    """One worker."""

    name: str
    state: Literal["starting", "up", "down"]
    restarts: int = Field(description="Times it was started again since the server started.")
    jobs: int = Field(description="Jobs that wait or run on it.")


class WorkerList(WireModel):
    """The workers of this server."""

    object: Literal["list"] = "list"
    data: list[WorkerReport]


class VersionReport(WireModel):
    """Versions of the service and of what computes."""

    version: str
    torch: str
    transformers: str


class Health(WireModel):
    """State of this server."""

    status: Literal["alive", "ready"]


class ErrorBody(WireModel):
    """What went wrong."""

    code: str = Field(description="Stable name of the error.")
    message: str
    param: str | None = Field(description="The field that is at fault.")
    request_id: str
    adapter_id: str | None = Field(default=None, description="The adapter that a retry will join or find.")


class ErrorResponse(WireModel):
    """Every answer that is not 2xx."""

    error: ErrorBody
