"""Adapters as the API shows them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.schemas.diagnosis import Diagnosis
from service.schemas.predictions import Cache, Timings
from service.schemas.wire import WireModel


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


class HeldOutAnswers(WireModel):
    """Support examples as adapters of the others answered them, and what that did to the temperature."""

    n: int = Field(description="Examples.")
    correct: int
    nll: float = Field(
        description="Mean negative log-likelihood of the labels, in nats, before the temperature changed."
    )
    temperature_factor: float = Field(
        description="The adapter's temperature over that of its posterior after as many examples."
    )


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
    temperature: float = Field(
        description="T of the distributions over options: the averaged one to the power 1/T."
    )
    held_out: HeldOutAnswers | None = Field(
        default=None, description="What chose the temperature, if `adapt.calibration_folds` was given."
    )
    diagnosis: Diagnosis | None = Field(default=None, description="The latest, once there is one.")
    warnings: list[str]


class CreateAdapterResponse(Adapter):
    """The adapter, and how this request came by it."""

    cache: Cache
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
