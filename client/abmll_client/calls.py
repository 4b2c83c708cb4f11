"""The requests of the native surface: for each, what is sent and what its answer is read as. Nothing is sent from here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypedDict, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from abmll_client.errors import UnreadableAnswerError, error_of
from service import schemas

AnswerT = TypeVar("AnswerT", bound=schemas.WireModel)

SupportLike: TypeAlias = Iterable[tuple[str, str] | Mapping[str, Any]]
"""Labelled examples: (text, label) pairs, or rows with `input`, `output` and perhaps `options`."""
InputsLike: TypeAlias = Iterable[str | Mapping[str, Any]]
"""Texts to answer, or rows with `input` and perhaps `options`."""

MAX_PAGE = 1000


class AdaptFields(TypedDict, total=False):
    """What adapting takes besides the support: see `service.schemas.CreateAdapterRequest`."""

    model: str | None
    options: Sequence[str] | None
    adapt: Mapping[str, Any] | None
    seed: int
    truncate: bool


class PredictFields(AdaptFields, total=False):
    """What predicting takes besides the inputs: see `service.schemas.PredictRequest`. `gate` goes to the server as it is."""

    adapter_id: str | None
    support: SupportLike | None
    samples: int | Literal["auto"]
    confidence: Literal["predictive", "calibrated"] | None
    gate: Mapping[str, Any] | None
    set: Mapping[str, Any] | None
    log: bool
    max_new_tokens: int
    answers_per_sample: int


class CalibrateFields(TypedDict, total=False):
    """What calibrating takes besides the examples: see `service.schemas.CalibrateRequest`."""

    options: Sequence[str] | None
    samples: int | Literal["auto"]
    seed: int
    truncate: bool
    max_new_tokens: int


@dataclass(frozen=True)
class Call(Generic[AnswerT]):
    """One request and how to read its answer. `timeout_seconds` None is the client's."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    answer: type[AnswerT]
    body: Mapping[str, Any] | None = None
    query: Mapping[str, str | int] | None = None
    timeout_seconds: float | None = None

    def read(self, response: httpx.Response) -> AnswerT:
        """The answer; fields that this client does not know are left out.

        Raises `StatusError` for what is not 2xx, and `UnreadableAnswerError`.
        """
        if not response.is_success:
            raise error_of(response)
        try:
            return self.answer.model_validate_json(response.content, extra="ignore")
        except ValidationError as error:
            where = ".".join(map(str, error.errors(include_input=False)[0]["loc"])) or "the body"
            message = f"{self.method} {self.path}: {where} is not as a {self.answer.__name__} has it"
            raise UnreadableAnswerError(message) from error


def create_adapter(support: SupportLike, **fields: Any) -> Call[schemas.CreateAdapterResponse]:
    """Adapt to `support`, with `AdaptFields`."""
    body = _given({"support": labelled(support), **fields})
    return Call("POST", "/v1/adapters", schemas.CreateAdapterResponse, body)


def adapters(page_size: int, after: str | None = None) -> Call[schemas.AdapterList]:
    """A page of adapters."""
    return Call(
        "GET", "/v1/adapters", schemas.AdapterList, query=_given({"limit": page_size, "after": after})
    )


def adapters_after(page: schemas.AdapterList, page_size: int) -> Call[schemas.AdapterList] | None:
    """The page behind `page`, if there is one."""
    return adapters(page_size, page.data[-1].id) if page.has_more and page.data else None


def adapter(adapter_id: str) -> Call[schemas.Adapter]:
    """One adapter."""
    return Call("GET", _adapter_path(adapter_id), schemas.Adapter)


def delete(adapter_id: str) -> Call[schemas.DeletedAdapter]:
    """Forget an adapter."""
    return Call("DELETE", _adapter_path(adapter_id), schemas.DeletedAdapter)


def pin(adapter_id: str) -> Call[schemas.PinnedAdapter]:
    """Keep an adapter in memory."""
    return Call("POST", f"{_adapter_path(adapter_id)}/pin", schemas.PinnedAdapter)


def unpin(adapter_id: str) -> Call[schemas.PinnedAdapter]:
    """Let an adapter leave memory."""
    return Call("POST", f"{_adapter_path(adapter_id)}/unpin", schemas.PinnedAdapter)


def predict(inputs: InputsLike, **fields: Any) -> Call[schemas.PredictResponse]:
    """Answer `inputs`, with `PredictFields`."""
    if fields.get("support") is not None:
        fields["support"] = labelled(fields["support"])
    return Call("POST", "/v1/predict", schemas.PredictResponse, _given({"inputs": listed(inputs), **fields}))


def diagnose(adapter_id: str, **fields: int | None) -> Call[schemas.DiagnoseResponse]:
    """Estimate an adapter on its own support; `folds` and `samples`."""
    return Call("POST", f"{_adapter_path(adapter_id)}/diagnose", schemas.DiagnoseResponse, _given(fields))


def calibrate(adapter_id: str, examples: SupportLike, **fields: Any) -> Call[schemas.Calibration]:
    """Take in labelled examples for calibrated gates, with `CalibrateFields`."""
    body = _given({"examples": labelled(examples), **fields})
    return Call("POST", f"{_adapter_path(adapter_id)}/calibrate", schemas.Calibration, body)


def calibration(adapter_id: str) -> Call[schemas.Calibration]:
    """The adapter's calibration."""
    return Call("GET", f"{_adapter_path(adapter_id)}/calibration", schemas.Calibration)


def delete_calibration(adapter_id: str) -> Call[schemas.DeletedCalibration]:
    """Forget the adapter's calibration."""
    return Call("DELETE", f"{_adapter_path(adapter_id)}/calibration", schemas.DeletedCalibration)


def feedback(adapter_id: str, labels: Mapping[str, str]) -> Call[schemas.FeedbackResponse]:
    """Right answers by prediction id."""
    rows = [{"prediction_id": id, "label": label} for id, label in labels.items()]
    return Call("POST", f"{_adapter_path(adapter_id)}/feedback", schemas.FeedbackResponse, {"feedback": rows})


def models() -> Call[schemas.ModelList]:
    """What is served."""
    return Call("GET", "/v1/models", schemas.ModelList)


def limits() -> Call[schemas.LimitsReport]:
    """What is accepted."""
    return Call("GET", "/v1/limits", schemas.LimitsReport)


def ready() -> Call[schemas.Health]:
    """Whether work is taken; a probe, so it is not waited for as long as work is."""
    return Call("GET", "/readyz", schemas.Health, timeout_seconds=5)


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def labelled(rows: SupportLike) -> list[Mapping[str, Any]]:
    """Labelled examples as rows."""
    return [
        row if isinstance(row, Mapping) else dict(zip(("input", "output"), row, strict=True)) for row in rows
    ]


def listed(inputs: InputsLike) -> list[str | Mapping[str, Any]]:
    """`inputs` as a list. Raises `TypeError` for a single text, whose letters nobody means to send."""
    if isinstance(inputs, str):
        raise TypeError("inputs are a list of texts, not one text")
    return list(inputs)


def _adapter_path(adapter_id: str) -> str:
    if not adapter_id:
        raise ValueError("the adapter's id is empty")
    return f"/v1/adapters/{quote(adapter_id, safe='')}"
