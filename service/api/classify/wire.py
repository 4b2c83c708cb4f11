"""The wire of Cohere's Classify, version 1. Fields of this server alone are below `abmll`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from service import schemas
from service.schemas import WireModel, demo

_EXAMPLE: dict[str, Any] = {
    "examples": [{"text": text, "label": label} for text, label in demo.SUPPORT],
    "inputs": demo.INPUTS,
    "abmll": {"gate": {"min_confidence": 0.5}},
}


class ClassifyExample(WireModel):
    """A labelled example."""

    text: str
    label: str


class ClassifyOptions(WireModel):
    """Parameters that Classify does not have."""

    samples: schemas.Samples = 16
    seed: schemas.Seed = 0
    gate: schemas.Gate | None = Field(default=None, description="When to abstain; by default never.")
    adapt: schemas.Adapt | None = Field(
        default=None, description="How to fit; only together with `examples`."
    )


class ClassifyRequest(WireModel):
    """Label `inputs` by `examples`, or with the adapter that `model` names."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    inputs: list[str] = Field(min_length=1, description="Texts to label.")
    examples: list[ClassifyExample] | None = Field(
        default=None,
        description="Labelled examples with at least two labels. One example for each label is enough.",
    )
    model: str | None = Field(
        default=None,
        description="Without `examples`, the id of an adapter, or a name of one. With them, the base model; by "
        "default the one this server serves.",
    )
    preset: str | None = Field(default=None, description="Refused: this server has no presets.")
    truncate: Literal["NONE", "END"] | None = Field(
        default=None,
        description="`NONE` refuses texts that do not fit the context, `END` cuts their end. By "
        "default `END`.",
    )
    abmll: ClassifyOptions = Field(
        default_factory=ClassifyOptions, description="Parameters of this server beyond Classify's."
    )

    @field_validator("preset")
    @classmethod
    def _no_preset(cls, value: Any) -> Any:
        if value is not None:
            raise ValueError(
                "there are no presets here; send examples, or the id or name of an adapter as model"
            )
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if not self.examples and self.model is None:
            raise ValueError("examples are needed, or the id or name of an adapter as model")
        if not self.examples and self.abmll.adapt is not None:
            raise ValueError("abmll.adapt applies to examples: an adapter named by model is already fitted")
        return self


class LabelConfidence(WireModel):
    """The probability of a label in the posterior predictive."""

    confidence: float


class ClassificationDetails(WireModel):
    """Details of a classification, as in `POST /v1/predict`."""

    confidence_kind: str
    margin: float
    decision: Literal["answer", "abstain"]
    abstain_reason: str | None = None
    uncertainty: schemas.UncertaintyReport
    samples: int


class Classification(WireModel):
    """The label of one input."""

    id: str
    input: str
    prediction: str = Field(description="The most probable label; given even when abstaining.")
    predictions: list[str]
    confidence: float = Field(description="Confidence of the prediction, between 0 and 1.")
    confidences: list[float]
    labels: dict[str, LabelConfidence] = Field(description="Probabilities of all labels; their sum is 1.")
    classification_type: Literal["single-label"] = "single-label"
    abmll: ClassificationDetails


class ApiVersion(WireModel):
    """The version of Cohere's interface."""

    version: str = "1"


class BilledUnits(WireModel):
    """Number of classifications, which Cohere would bill."""

    classifications: int


class MetaTokens(WireModel):
    """Tokens of the request; those of the examples are in `abmll.usage`."""

    input_tokens: int
    output_tokens: int


class ClassifyMeta(WireModel):
    """About the request."""

    api_version: ApiVersion = ApiVersion()
    billed_units: BilledUnits
    tokens: MetaTokens
    warnings: list[str]


class ClassifyDetails(WireModel):
    """The adapter, the tokens and the times, as in `POST /v1/predict`."""

    adapter_id: str
    model: str | None = None
    seed: int
    cache: schemas.Cache
    refines_to: schemas.RefinesTo = None
    usage: schemas.Usage
    timings: schemas.Timings


class ClassifyResponse(WireModel):
    """Labels, in the order of the inputs."""

    id: str = Field(description="Id of the request.")
    classifications: list[Classification]
    meta: ClassifyMeta
    abmll: ClassifyDetails


class ClassifyError(WireModel):
    """Body of every answer that is not 2xx."""

    message: str
    id: str = Field(description="Id of the request.")
