"""The server: models, limits, workers, health, errors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.schemas.adapters import BaseInfo
from service.schemas.fields import ErrorCode
from service.schemas.wire import WireModel


class ModelCard(WireModel):
    """A model that requests can name: the base model with its global posterior, an adapter, or a
    name.
    """

    id: str
    object: Literal["model"] = "model"
    created: int = Field(
        description="Time at which the adapter was made, or this server started for the base "
        "model; Unix seconds."
    )
    owned_by: Literal["abmll-serve"] = "abmll-serve"
    parent: str | None = Field(
        description="Base model of an adapter; adapter of a name; null for the base model."
    )
    base: BaseInfo
    posterior: str = Field(
        description="Id of the global posterior that answers, or that new adapters start from."
    )
    posteriors: list[str] = Field(
        default_factory=list,
        description="Of the base model: ids of the global posteriors whose adapters are served, the default "
        "first. Of an adapter, its own.",
    )
    max_model_len: int = Field(description="Length of the context, in tokens.")


class ModelSummary(WireModel):
    """A model as TypeSafe's clients list it."""

    name: str = Field(description="Its id.")
    description: str
    release_date: str = Field(description="Date of `created` in UTC, as `2026-11-30`.")


class ModelList(WireModel):
    """A page of models: the base model first, then adapters by id, then names."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
    models: list[ModelSummary] = Field(
        default_factory=list, description="The same models, for TypeSafe's clients."
    )
    has_more: bool = False
    last_id: str | None = Field(default=None, description="`after` of the next page.")


class WorkedPrice(WireModel):
    """What an idle worker would take for one request, as it measured itself at its start."""

    what: Literal["adapt", "predict"]
    count: int = Field(description="Support examples with `adapt`, inputs with `predict`.")
    tokens: int = Field(description="Tokens of each text.")
    options: int = Field(description="Options of each text, one token each.")
    samples: int | None = Field(description="Posterior samples; null with `adapt`.")
    seconds: float


class LimitsReport(WireModel):
    """Limits of a request. One over `max_body_bytes` gets 413, one over another limit 422."""

    max_body_bytes: int
    max_support: int
    max_inputs: int
    max_questions: int
    max_options: int
    max_text_chars: int
    max_prompt_tokens: int
    max_samples: int
    max_folds: int
    max_steps: int
    max_new_tokens: int
    max_names: int
    max_calibration: int
    max_logged: int
    queue_limit: int
    queue_seconds: float = Field(
        description="Most seconds of work, by price, that wait or run for each worker; more gets 429."
    )
    deadline_seconds: float = Field(
        description="A request that an idle worker would take over 1.5 times as long for gets 422, "
        "`price_exceeds_deadline`."
    )
    long_deadline_seconds: float = Field(
        description="The same for a request for an adapter with `wait_ms`, which goes on without its client."
    )
    prices: list[WorkedPrice] = Field(
        default_factory=list, description="Prices of some requests. Time grows with each number."
    )


class WorkerReport(WireModel):
    """State of one worker."""

    name: str
    state: Literal["starting", "up", "draining", "down"]
    restarts: int = Field(description="Restarts since the server started.")
    jobs: int = Field(description="Jobs that wait or run on it now.")
    memory_bytes: int | None = Field(
        default=None, description="Main memory of its process; null where it has none of its own."
    )


class WorkerList(WireModel):
    """States of all workers."""

    object: Literal["list"] = "list"
    data: list[WorkerReport]


class VersionReport(WireModel):
    """Versions of the service and of the libraries that compute."""

    version: str
    torch: str
    transformers: str


class Health(WireModel):
    """State of the server."""

    status: Literal["alive", "ready"]


class ErrorBody(WireModel):
    """Why a request was refused or failed."""

    code: ErrorCode
    message: str
    param: str | None = Field(description="The field that is wrong.")
    request_id: str
    adapter_id: str | None = Field(default=None, description="The adapter that a retry joins or finds.")
    about_n_more_labels: int | None = Field(
        default=None,
        description="With `cannot_certify`: estimate of the missing labels; null if more labels of "
        "this kind do not help.",
    )


class ErrorResponse(WireModel):
    """Body of every answer that is not 2xx."""

    error: ErrorBody
