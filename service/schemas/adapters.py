"""Adapters."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from service.schemas.diagnosis import Diagnosis
from service.schemas.fields import ErrorCode, RefinesTo
from service.schemas.predictions import Cache, Timings
from service.schemas.wire import WireModel


class SupportSummary(WireModel):
    """Summary of the labelled examples from which the adapter was made."""

    n: int = Field(description="Number of labelled examples.")
    tokens: int
    per_label: dict[str, int] = Field(description="Number of examples with each label; empty for free text.")


class AdapterQuestion(WireModel):
    """One of an adapter's own questions, and how many cases answer it."""

    question: dict[str, Any] = Field(description="As requests have it; the name alone suffices.")
    cases: int = Field(description="Number of cases that answer it; 0: it is answered zero-shot.")
    cannot_tell: int = Field(description="Number of those that say that the input does not tell the answer.")


class BaseInfo(WireModel):
    """Identity of the base model."""

    id: str
    revision: str
    quantisation: str


class Diagnostics(WireModel):
    """Losses of the fit."""

    losses: list[float] = Field(description="Mean loss of each step, in nats for each example.")
    steps: int


class HeldOutQuestion(WireModel):
    """Predictions for held-out examples of one question."""

    instruction: str
    n: int = Field(description="Number of examples.")
    correct: int
    nll: float | None = Field(default=None, description="As for all questions; absent without examples.")
    temperature_factor: float = Field(
        description="The question's temperature divided by the global posterior's. Few examples leave it near "
        "the factor of all questions."
    )


class HeldOutAnswers(WireModel):
    """Predictions for held-out support examples by adapters of the other examples.

    They chose the adapter's temperature.
    """

    n: int = Field(description="Number of examples.")
    correct: int
    nll: float = Field(
        description="Mean negative log-likelihood of the labels, in nats, before the temperature was changed."
    )
    temperature_factor: float = Field(
        description="The adapter's temperature divided by the global posterior's for this number of examples."
    )
    questions: list[HeldOutQuestion] | None = Field(
        default=None, description="The same by question, for an adapter of several."
    )


class Adapter(WireModel):
    """A task posterior that this server stores."""

    id: str
    object: Literal["adapter"] = "adapter"
    status: Literal["ready"] = "ready"
    base: BaseInfo
    posterior: str
    support: SupportSummary
    options: list[str] = Field(
        description="Options that all examples have in common, which apply to inputs without their "
        "own; else empty."
    )
    questions: list[AdapterQuestion] | None = Field(
        default=None, description="The adapter's own questions, if it was made from cases."
    )
    created: str = Field(description="Time at which it was stored, ISO 8601 in UTC.")
    diagnostics: Diagnostics
    temperature: float = Field(
        description="Temperature T of distributions over options: the average over samples is "
        "raised to the power 1/T."
    )
    held_out: HeldOutAnswers | None = Field(
        default=None,
        description="The predictions that chose the temperature, if `adapt.calibration_folds` was set.",
    )
    diagnosis: Diagnosis | None = Field(default=None, description="The latest diagnosis, if there is one.")
    warnings: list[str]


class CreateAdapterResponse(Adapter):
    """The adapter, and how this request got it."""

    cache: Cache
    refines_to: RefinesTo = None
    timings: Timings
    request_id: str


class AdaptationError(WireModel):
    """Why an adaptation ended without an adapter."""

    code: ErrorCode
    message: str
    param: str | None = Field(default=None, description="The field of the request that is wrong.")


class AdapterProgress(WireModel):
    """How far the making of an adapter is.

    The last four of the statuses are final: there is an adapter (`succeeded`), the adaptation
    `failed`, a client `cancelled` it, or it was not done before `long_deadline_seconds`
    (`expired`).
    """

    id: str = Field(description="Id of the adapter, which is there once the status is `succeeded`.")
    object: Literal["adapter.progress"] = "adapter.progress"
    status: Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
    step: int = Field(description="Gradient steps that are done.")
    steps: int = Field(description="Gradient steps in all; 0 where that is not known.")
    loss: float | None = Field(default=None, description="Mean loss of the latest step, in nats an example.")
    created: str | None = Field(default=None, description="Time at which it was asked for, ISO 8601 in UTC.")
    finished: str | None = Field(default=None, description="Time at which it ended, ISO 8601 in UTC.")
    error: AdaptationError | None = None


class AdapterList(WireModel):
    """A page of adapters, in order of their ids."""

    object: Literal["list"] = "list"
    data: list[Adapter]
    has_more: bool


class PinnedAdapter(WireModel):
    """An adapter that was pinned or unpinned."""

    id: str
    object: Literal["adapter"] = "adapter"
    pinned: bool


class DeletedAdapter(WireModel):
    """An adapter that was deleted."""

    id: str
    object: Literal["adapter"] = "adapter"
    deleted: Literal[True] = True


class ReadaptRequest(WireModel):
    """How to make an adapter again, with the global posterior that is served by default."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"dry_run": True}]})

    dry_run: bool = Field(default=False, description="Say what would be made and moved, and do nothing.")
    move_names: bool = Field(
        default=True,
        description="Point the names of the adapter to the new one, each by a new version. Without it they "
        "stay, so that the new one can be calibrated first.",
    )


class ReadaptResponse(WireModel):
    """The new adapter of the same examples, and which names it has."""

    object: Literal["readaptation"] = "readaptation"
    adapter_id: str
    new_adapter_id: str = Field(
        description="The new adapter; `adapter_id` itself, if that is of the default posterior already."
    )
    posterior: str = Field(description="Id of the global posterior that the new adapter is of.")
    names: list[str] = Field(description="Names that moved to the new adapter, or would.")
    loses_calibration: bool = Field(
        description="Whether the old adapter has a calibration and the new one has none: certificates of "
        "these names hold for their earlier versions only."
    )
    cache: Cache | None = Field(
        default=None, description="Absent in a dry run, and if nothing is to be made."
    )
    made_already: bool | None = Field(
        default=None, description="In a dry run: whether the new adapter is there already."
    )
    adapt_seconds: float | None = Field(
        default=None,
        description="In a dry run: what an idle worker would take, about; absent if its speed is not known.",
    )
    refusal: str | None = Field(
        default=None, description="In a dry run: why it would be refused, if it would."
    )
    request_id: str
