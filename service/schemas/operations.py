"""The server itself: models, limits, workers, health, errors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.schemas.adapters import BaseInfo
from service.schemas.wire import WireModel


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
