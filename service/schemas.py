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
    """When to abstain: below raw thresholds, which promise nothing and must all hold; or, for a calibrated adapter, below the
    threshold that is certified for a target error, or that keeps a target coverage.
    """

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
    max_semantic_entropy: float | None = Field(
        default=None,
        ge=0,
        description="Most entropy between the meanings of free-text answers, in nats; needs an input without options.",
    )
    min_logprob_per_token: float | None = Field(
        default=None,
        le=0,
        description="Least log-probability of a free-text answer by its tokens, in nats; needs an input without options.",
    )
    target_error: float | None = Field(
        default=None,
        ge=0.001,
        le=0.5,
        description="Most error among accepted answers, certified from the adapter's calibration; goes with `delta` alone.",
    )
    delta: float | None = Field(
        default=None,
        ge=1e-6,
        le=0.5,
        description="Probability, over the labels, that the certificate for `target_error` is wrong; by default 0.1.",
    )
    target_coverage: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of inputs to accept, from the adapter's calibration; alone in its gate. Says nothing of errors.",
    )

    @property
    def calibrated(self) -> bool:
        """Whether the threshold comes from the adapter's calibration."""
        return self.target_error is not None or self.target_coverage is not None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        raw = (
            self.min_confidence,
            self.min_margin,
            self.max_mutual_information,
            self.max_semantic_entropy,
            self.min_logprob_per_token,
        )
        kinds = (self.target_error, self.target_coverage, next((v for v in raw if v is not None), None))
        if sum(kind is not None for kind in kinds) > 1:
            raise ValueError("target_error, target_coverage and raw thresholds exclude each other")
        if self.delta is not None and self.target_error is None:
            raise ValueError("delta belongs to target_error")
        return self


class SetRequest(WireModel):
    """A conformal prediction set for each input."""

    alpha: float = Field(
        ge=0.001, le=0.5, description="The set may miss the right option with this probability."
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
Seed = _Seed  # for the other surfaces
Samples = _Samples
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
    stream: bool = Field(
        default=False,
        description="Answer with server-sent events that refine the predictions as samples arrive.",
    )
    answers_per_sample: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Free-text answers that each sample writes: the first greedily, the others by drawing tokens.",
    )
    set: SetRequest | None = Field(
        default=None, description="Add a prediction set to each prediction; the adapter must be calibrated."
    )
    log: bool = Field(
        default=False,
        description="Remember the predictions for feedback, also without a calibrated gate; the adapter must be calibrated.",
    )

    confidence: Literal["predictive", "calibrated"] | None = Field(
        default=None,
        description="The kind of confidence that is wanted; by default a calibrated one where it can be had. `predictive` is "
        "the answer's raw share; `calibrated` is refused where the posterior has no calibrator, the samples are too few, or the "
        "answers are free text.",
    )

    @property
    def calibrated(self) -> bool:
        """Whether the adapter's calibration is needed."""
        return self.log or self.set is not None or (self.gate is not None and self.gate.calibrated)

    @model_validator(mode="after")
    def _calibrated_adapter(self) -> Self:
        if self.calibrated and self.adapter_id is None:
            raise ValueError(
                "a calibrated gate, set and log need adapter_id: it is an adapter that is calibrated"
            )
        if self.calibrated and self.answers_per_sample != 1:
            raise ValueError("calibrations are made with one answer a sample: leave answers_per_sample out")
        return self

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
    """Everything above `cache` is the same, byte for byte, whenever the same request is repeated under the same calibration.

    One more thing changes it: a diagnosis made meanwhile, which calibrated confidences take into account.
    """

    adapter_id: str
    predictions: list[Prediction]
    usage: Usage
    seed: int
    warnings: list[str]
    gate: GateReport | None = None
    calibrator: str | None = Field(
        default=None, description="Id of the calibrator behind calibrated confidences."
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
    """What requests may name as `model`: the base model with its global posterior, or an adapter."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(
        description="When the adapter was made, or for the base model this server started; Unix seconds."
    )
    owned_by: Literal["abmll-serve"] = "abmll-serve"
    parent: str | None = Field(description="Base model of an adapter; null for the base model itself.")
    base: BaseInfo
    posterior: str
    max_model_len: int = Field(description="Context, in tokens.")
    calibrator: str | None = Field(
        default=None, description="Id of the calibrator of the posterior's confidences."
    )


class ModelList(WireModel):
    """A page of models: the base model first, then adapters ordered by id."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
    has_more: bool = False
    last_id: str | None = Field(default=None, description="`after` of the next page.")


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
    max_calibration: int
    max_logged: int
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
    about_n_more_labels: int | None = Field(
        default=None,
        description="With `cannot_certify`: labels that might do; null where more of the same kind promise nothing.",
    )


class ErrorResponse(WireModel):
    """Every answer that is not 2xx."""

    error: ErrorBody
