"""The server itself: models, limits, health, errors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from abmll_client.models.adapters import BaseInfo
from abmll_client.models.answer import Answer


class ModelCard(Answer):
    """What requests may name as `model`: the base model with its posterior, an adapter, or a name."""

    id: str
    object: Literal["model"] = "model"
    created: int  # Unix seconds; of the base model, when the server started
    owned_by: Literal["abmll-serve"] = "abmll-serve"
    parent: str | None  # base model of an adapter; adapter of a name; None for the base model itself
    base: BaseInfo
    posterior: str
    posteriors: list[str] = Field(default_factory=list)  # of the base model: all that are served
    max_model_len: int  # context, in tokens


class ModelSummary(Answer):
    """A model as TypeSafe's clients list it."""

    name: str
    description: str
    release_date: str


class ModelList(Answer):
    """A page of models: the base model first, then adapters by id, then names."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
    models: list[ModelSummary] = Field(default_factory=list)  # the same ones, for TypeSafe's clients
    has_more: bool = False
    last_id: str | None = None  # `after` of the next page


class WorkedPrice(Answer):
    """What an idle worker of the server would take for one request."""

    what: Literal["adapt", "predict"]
    count: int  # support examples, or inputs
    tokens: int  # of each text
    options: int  # of each text, one token each
    samples: int | None  # None with `adapt`
    seconds: float


class LimitsReport(Answer):
    """What the server accepts."""

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
    queue_seconds: float  # of work by price, for each worker
    deadline_seconds: float
    long_deadline_seconds: float  # of an adapter with `wait`
    prices: list[WorkedPrice] = Field(default_factory=list)


class Health(Answer):
    """State of the server."""

    status: Literal["alive", "ready"]


class ErrorBody(Answer):
    """What went wrong; `code` is the error's stable name."""

    code: str
    message: str
    param: str | None  # the field at fault
    request_id: str
    adapter_id: str | None = None  # the adapter that a retry will join or find
    about_n_more_labels: int | None = None  # with `cannot_certify`: labels that might do


class ErrorResponse(Answer):
    """Every answer that is not 2xx."""

    error: ErrorBody
