"""Requests to adapt and to predict."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, Tag, model_validator

from service.schemas import demo
from service.schemas.fields import Adapt, Confidence, Model, Options, Samples, Seed, Support, Truncate
from service.schemas.questions import Case, Question
from service.schemas.wire import WireModel, one_of


class InputRow(WireModel):
    """A text to answer that has its own options."""

    input: str = Field(description="The text.")
    options: list[str] | None = Field(
        default=None, description="Options of this input, in place of the request's."
    )


def _kind_of_input(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<row>" if isinstance(value, dict | InputRow) else None


Input = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[InputRow, Tag("<row>")],
    one_of(_kind_of_input, "a text, or an object with 'input' and 'options'"),
]


class Gate(WireModel):
    """When to abstain: a rule of one of three kinds.

    Raw thresholds guarantee nothing; an answer must meet all of them. For a calibrated adapter,
    `target_error` uses the threshold that is certified for this error, and `target_coverage` the
    threshold that keeps this coverage.
    """

    min_confidence: float | None = Field(
        default=None, ge=0, le=1, description="Least confidence of the answer."
    )
    min_margin: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Least difference between the probabilities of the answer and of the runner-up.",
    )
    max_mutual_information: float | None = Field(
        default=None, ge=0, description="Most mutual information between the answer and the weights, in nats."
    )
    min_typicality: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Least typicality. Of inputs that are like the examples, about this fraction "
        "is below. An input without a typicality abstains.",
    )
    min_answerable: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Least probability that the input tells the answer. An answer without an `answerable`, "
        "as without a typed question, abstains.",
    )
    max_semantic_entropy: float | None = Field(
        default=None,
        ge=0,
        description="Most entropy of the meanings of free-text answers, in nats; needs an input "
        "without options.",
    )
    min_logprob_per_token: float | None = Field(
        default=None,
        le=0,
        description="Least log-probability of a free-text answer divided by its tokens, in nats; "
        "needs an input without options.",
    )
    target_error: float | None = Field(
        default=None,
        ge=0.001,
        le=0.5,
        description="Most error among given answers, certified from the adapter's calibration; "
        "only `delta` may be with it.",
    )
    delta: float | None = Field(
        default=None,
        ge=1e-6,
        le=0.5,
        description="Probability, over the labels of the calibration, that the certificate for "
        "`target_error` is wrong; by default 0.1.",
    )
    target_coverage: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Fraction of inputs to answer, from the adapter's calibration; the only field "
        "of its gate. Guarantees nothing about errors.",
    )

    @property
    def calibrated(self) -> bool:
        """Whether the gate's threshold comes from the adapter's calibration."""
        return self.target_error is not None or self.target_coverage is not None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        raw = (
            self.min_confidence,
            self.min_margin,
            self.max_mutual_information,
            self.min_typicality,
            self.min_answerable,
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
        ge=0.001, le=0.5, description="Most probability that the set misses the right option."
    )


_PREDICT_EXAMPLE = demo.predict_body()
_CREATE_EXAMPLE = {key: _PREDICT_EXAMPLE[key] for key in ("support", "options", "seed")}


class CreateAdapterRequest(WireModel):
    """Adapt to a support set, or to cases of typed questions."""

    model_config = ConfigDict(json_schema_extra={"examples": [_CREATE_EXAMPLE]})

    model: Model = None
    support: Support | None = None
    options: Options = None
    questions: list[Question] | None = Field(
        default=None,
        min_length=1,
        description="Questions that `cases` answer, with different names; in place of `support`.",
    )
    cases: list[Case] | None = Field(
        default=None,
        min_length=1,
        description="Inputs with answers to some of the questions. A question without an answer in any "
        "case is one of the adapter's too, and is answered zero-shot.",
    )
    adapt: Adapt | None = Field(default=None, description="How to fit.")
    seed: Seed = 0
    truncate: Truncate = False

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.support is None) == (self.cases is None):
            raise ValueError("exactly one of support, and cases with their questions, is needed")
        if (self.cases is None) != (self.questions is None):
            raise ValueError("questions and cases belong together: cases answer questions")
        if self.cases is not None and self.options is not None:
            raise ValueError("options belong to support: each question has its own")
        return self


class PredictRequest(WireModel):
    """Answer inputs with an adapter that is named by `adapter_id` or `model`, or made from
    `support`.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_PREDICT_EXAMPLE]})

    model: str | None = Field(
        default=None,
        description="A name of an adapter, one version of it (`tickets@3`), or the id of an adapter, without "
        "`adapter_id` and `support`; or, beside one of these, the base model.",
    )
    adapter_id: str | None = Field(default=None, description="Id of an adapter made before.")
    support: Support | None = None
    inputs: list[Input] = Field(min_length=1, description="Texts to answer.")
    options: Options = None
    samples: Samples = 16
    seed: Seed = 0
    adapt: Adapt | None = Field(default=None, description="How to fit; only together with `support`.")
    gate: Gate | None = Field(default=None, description="When to abstain; by default never.")
    truncate: Truncate = False
    max_new_tokens: int = Field(default=32, ge=1, description="Longest free-text answer, in tokens.")
    stream: bool = Field(
        default=False,
        description="Answer with server-sent events, which refine the predictions with each chunk "
        "of samples.",
    )
    answers_per_sample: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Free-text answers of each sample: the first is greedy, the others draw their tokens.",
    )
    set: SetRequest | None = Field(
        default=None, description="Add a prediction set to each prediction; the adapter must be calibrated."
    )
    log: bool = Field(
        default=False,
        description="Store the predictions for feedback, also without a calibrated gate; the "
        "adapter must be calibrated.",
    )
    confidence: Confidence = None

    @property
    def calibrated(self) -> bool:
        """Whether the request needs the adapter's calibration."""
        return self.log or self.set is not None or (self.gate is not None and self.gate.calibrated)

    @model_validator(mode="after")
    def _calibrated_adapter(self) -> Self:
        if self.calibrated and self.support is not None:
            raise ValueError(
                "a calibrated gate, set and log need adapter_id or a name: it is an adapter that is calibrated"
            )
        if self.calibrated and self.answers_per_sample != 1:
            raise ValueError("calibrations are made with one answer a sample: leave answers_per_sample out")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [value for value in (self.adapter_id, self.support) if value is not None]
        if len(given) > 1 or (not given and self.model is None):
            raise ValueError(
                "exactly one of adapter_id and support is needed, or the name of an adapter as model"
            )
        if self.support is None and self.adapt is not None:
            raise ValueError("adapt applies to support: an adapter that is named is already fitted")
        return self
