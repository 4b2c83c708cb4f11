"""Adapters, and what became of requests that make, list, pin or delete them."""

from __future__ import annotations

from typing import Any, Literal

from abmll_client.models.answer import Answer
from abmll_client.models.diagnosis import Diagnosis
from abmll_client.models.predictions import Cache, Timings


class SupportSummary(Answer):
    """What an adapter was made from."""

    n: int  # labelled examples
    tokens: int
    per_label: dict[str, int]  # examples by label; empty for free text


class AdapterQuestion(Answer):
    """One of an adapter's own questions, and how many cases answer it."""

    question: dict[str, Any]  # as requests have it; the name alone suffices
    cases: int  # 0: it is answered zero-shot
    cannot_tell: int  # those that say that the input does not tell the answer


class BaseInfo(Answer):
    """The base model, exactly."""

    id: str
    revision: str
    quantisation: str


class Diagnostics(Answer):
    """How the fit went: the mean loss of each step, in nats an example."""

    losses: list[float]
    steps: int


class HeldOutQuestion(Answer):
    """Answers to held-out examples of one question; the fields are those of `HeldOutAnswers`."""

    instruction: str
    n: int
    correct: int
    nll: float | None = None  # if there are examples
    temperature_factor: float


class HeldOutAnswers(Answer):
    """Answers to held-out folds of the support, and the temperature that they chose."""

    n: int  # examples
    correct: int
    nll: float  # mean over the labels, in nats, before the temperature changed
    temperature_factor: float  # over the posterior's temperature after as many examples
    questions: list[HeldOutQuestion] | None = None  # for an adapter of several


class Adapter(Answer):
    """A task posterior that the server keeps."""

    id: str
    object: Literal["adapter"] = "adapter"
    status: Literal["ready"] = "ready"
    base: BaseInfo
    posterior: str
    support: SupportSummary
    options: list[str]  # of all examples, taken by inputs without their own; or empty
    questions: list[AdapterQuestion] | None = None  # if it was made from cases
    created: str  # ISO 8601, UTC
    diagnostics: Diagnostics
    temperature: float  # T: the averaged distribution over options is taken to the power 1/T
    held_out: HeldOutAnswers | None = None  # if `adapt.calibration_folds` was given
    diagnosis: Diagnosis | None = None  # the latest
    warnings: list[str]


class CreateAdapterResponse(Adapter):
    """An adapter, and how this request came by it."""

    cache: Cache
    refines_to: str | None = None  # the adapter that is made now in the background (`adapt.refine`)
    timings: Timings
    request_id: str


class AdaptationError(Answer):
    """Why an adaptation ended without an adapter."""

    code: str
    message: str
    param: str | None = None


class AdapterProgress(Answer):
    """How far the making of an adapter is; the last four of the statuses are final."""

    id: str  # of the adapter, which is there once the status is `succeeded`
    object: Literal["adapter.progress"] = "adapter.progress"
    status: Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
    step: int  # gradient steps that are done
    steps: int  # in all; 0 where that is not known
    loss: float | None = None  # mean of the latest step, in nats an example
    created: str | None = None  # ISO 8601, UTC
    finished: str | None = None
    error: AdaptationError | None = None


class AdapterList(Answer):
    """A page of adapters, ordered by id."""

    object: Literal["list"] = "list"
    data: list[Adapter]
    has_more: bool


class PinnedAdapter(Answer):
    """Whether an adapter stays in the server's memory."""

    id: str
    object: Literal["adapter"] = "adapter"
    pinned: bool


class DeletedAdapter(Answer):
    """Says that an adapter was deleted."""

    id: str
    object: Literal["adapter"] = "adapter"
    deleted: Literal[True] = True
