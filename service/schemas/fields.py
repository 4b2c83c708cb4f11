"""Fields that several kinds of requests have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag
from typing_extensions import TypeAliasType

from abmll.adaptation.settings import Effort
from service.errors import error_kinds
from service.schemas.wire import WireModel, one_of

MAX_SAMPLES = 64
MAX_SEED = 2**53 - 1  # the largest integer that every JSON client keeps exact


ErrorCode = TypeAliasType(
    "ErrorCode",
    Annotated[
        str,
        Field(
            description="Stable name of the error. Later versions may have more.",
            json_schema_extra={"enum": sorted({error.code for error in error_kinds()})},
        ),
    ],
)
"""Codes of `service/errors.py`."""


class SupportRow(WireModel):
    """A labelled example."""

    input: str = Field(description="The text.")
    output: str = Field(description="Its label, one of the options; or, without options, the text to answer.")
    options: list[str] | None = Field(
        default=None, description="Options of this example, in place of the request's."
    )


class Adapt(WireModel):
    """How the posterior is fitted.

    An absent field has the value of `effort`.
    """

    effort: Effort | None = Field(
        default=None,
        description="Work of the fit. `full`, the default: the gradient steps that the global posterior's record "
        "has; with several questions, enough for each input to come once. `fast`: two steps on "
        "batches of at least 16. `instant`: no step; only the classes are learned, by the Gaussian process. Without "
        "fixed options, `instant` answers as the global posterior does.",
    )
    steps: int | None = Field(default=None, ge=1, description="Gradient steps.")
    learning_rate: float | None = Field(default=None, gt=0, le=1, description="Learning rate of AdamW.")
    batch_size: int | None = Field(default=None, ge=1, description="Support examples of each step.")
    beta: float | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="Weight of KL(phi || theta) in the loss; 0 leaves the term out.",
    )
    calibration_folds: int | None = Field(
        default=None,
        ge=2,
        description="Number of folds of the support that are held out in turn. The adapter gets "
        "the temperature with which adapters of the other folds predict the held-out "
        "examples best, and its confidences are calibrated. Costs one more fit for "
        "each fold, and needs options.",
    )
    refine: bool | None = Field(
        default=None,
        description="Answer at once with the adapter of effort `instant`, and make the adapter of this request in "
        "the background: the answer's `refines_to` is its id. Once it is there, it answers. Folds are its own.",
    )


def is_none(value: object) -> bool:
    """Return whether `value` is None: then a field that has this as `exclude_if` is absent."""
    return value is None


RefinesTo = Annotated[
    str | None,
    Field(
        exclude_if=is_none,
        description="Id of the adapter that is made now in the background (`adapt.refine`). When it is there, "
        "names that point to the adapter of this answer move to it.",
    ),
]
"""An id that answers have only where an adapter is refined; everywhere else the field is absent."""

Model = Annotated[str | None, Field(description="Name of the base model; by default the one of this server.")]

Options = Annotated[
    list[str] | None,
    Field(
        description="Options of every row without its own. No options at all means free text.",
    ),
]

Seed = Annotated[
    int,
    Field(
        ge=0,
        le=MAX_SEED,
        description="Seed of the adaptation and of the samples. The same request and seed give the "
        "same answer.",
    ),
]

Truncate = Annotated[
    bool,
    Field(
        description="Cut the end of inputs that do not fit the context; by default the request is refused."
    ),
]


def _kind_of_samples(value: Any) -> str | None:
    return "<number>" if type(value) is int else "<auto>" if value == "auto" else None


Samples = Annotated[
    Annotated[int, Field(ge=0, le=MAX_SAMPLES), Tag("<number>")] | Annotated[Literal["auto"], Tag("<auto>")],
    one_of(_kind_of_samples, f"an integer from 0 to {MAX_SAMPLES}, or 'auto'"),
    Field(
        description="Number of posterior samples to average. 0 predicts with the posterior's mean "
        "only; `auto` draws samples until the gate is decided."
    ),
]

Confidence = Annotated[
    Literal["predictive", "calibrated"] | None,
    Field(
        description="Kind of confidence; by default `calibrated` where it exists. `predictive` is "
        "the answer's probability in the posterior predictive. `calibrated` is refused "
        "if the adapter has no temperature of its own, or for free text.",
    ),
]

Support = Annotated[list[SupportRow], Field(description="Labelled examples of the task.")]


def _refuse(value: Any) -> None:
    if value:
        raise ValueError("this server does not support it; leave it out")


Unsupported = Annotated[None, BeforeValidator(_refuse), Field(description="Not supported.")]
"""A parameter of another provider's surface that is refused by name, unless it is null or empty."""
