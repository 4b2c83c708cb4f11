"""The requests of the native surface: for each, what is sent and how its answer is read.

Nothing is sent from here: the clients send a `Call`, and `plans` put several together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from abmll_client import models
from abmll_client.arguments import (
    InputsLike,
    SupportLike,
    check_characters,
    input_rows,
    labelled_rows,
    text_rows,
)
from abmll_client.errors import UnreadableAnswerError, error_of
from abmll_client.questions import CasesLike, QuestionLike, case_rows, question_rows

AnswerT = TypeVar("AnswerT", bound=models.Answer)


@dataclass(frozen=True)
class Call(Generic[AnswerT]):
    """One request and how to read its answer. `timeout_seconds` None takes the client's timeout.

    `accepted` reads an answer with the status 202, where there may be one. `affinity` names the
    adapter to a load balancer, where the path and the body do not (see `affinity_of`). Making a
    call raises `ValueError` for half a character in its body.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    answer: type[AnswerT]
    body: Mapping[str, Any] | None = None
    query: Mapping[str, str | int] | None = None
    timeout_seconds: float | None = None
    accepted: type[Any] | None = None
    affinity: str | None = None

    def __post_init__(self) -> None:
        check_characters(self.body, "")

    def read(self, response: httpx.Response) -> AnswerT:
        """Read the answer; fields that this client does not know are left out.

        Raises `StatusError` for a status that is not 2xx, and `UnreadableAnswerError`.
        """
        if not response.is_success:
            raise error_of(response)
        answer: type[Any] = self.answer
        if self.accepted is not None and response.status_code == 202:
            answer = self.accepted
        read: AnswerT = read_as(answer, response.content, f"{self.method} {self.path}")
        return read


def read_as(answer: type[AnswerT], content: bytes | str, what: str) -> AnswerT:
    """Read JSON as a record. Raises `UnreadableAnswerError`, which calls the JSON `what`."""
    try:
        return answer.model_validate_json(content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors(include_input=False)[0]["loc"])) or "the body"
        raise UnreadableAnswerError(f"{what}: {where} is not as a {answer.__name__} has it") from error


# ---- adapters ------------------------------------------------------------------------------------


def create_adapter(
    support: SupportLike | None,
    questions: Iterable[QuestionLike] | None = None,
    cases: CasesLike | None = None,
    **fields: Any,
) -> Call[models.CreateAdapterResponse]:
    """Adapt to `support`, or to `cases` of `questions`, with `AdaptFields`."""
    body = {"support": None if support is None else labelled_rows(support, "support"), **fields}
    return Call(
        "POST", "/v1/adapters", models.CreateAdapterResponse, _given({**body, **_asked(questions, cases)})
    )


def progress(adapter_id: str, wait_ms: int = 0) -> Call[models.AdapterProgress]:
    """Get how far the making of an adapter is, once that is final or after `wait_ms`."""
    path = f"{_adapter_path(adapter_id)}/progress"
    return Call("GET", path, models.AdapterProgress, query={"wait_ms": wait_ms})


def events(adapter_id: str) -> Call[models.AdapterProgress]:
    """Get each change of the making of an adapter, as events (`abmll_client.events` reads them)."""
    return Call("GET", f"{_adapter_path(adapter_id)}/events", models.AdapterProgress)


def cancel(adapter_id: str) -> Call[models.AdapterProgress]:
    """End the making of an adapter."""
    return Call("POST", f"{_adapter_path(adapter_id)}/cancel", models.AdapterProgress)


def adapters(page_size: int, after: str | None = None) -> Call[models.AdapterList]:
    """List a page of adapters, from the one behind the id `after`."""
    query = _given({"limit": page_size, "after": after})
    return Call("GET", "/v1/adapters", models.AdapterList, query=query)


def adapters_after(page: models.AdapterList, page_size: int) -> Call[models.AdapterList] | None:
    """List the page behind `page`, if there is one."""
    return adapters(page_size, page.data[-1].id) if page.has_more and page.data else None


def adapter(adapter_id: str) -> Call[models.Adapter]:
    """Get one adapter."""
    return Call("GET", _adapter_path(adapter_id), models.Adapter)


def delete(adapter_id: str) -> Call[models.DeletedAdapter]:
    """Delete an adapter."""
    return Call("DELETE", _adapter_path(adapter_id), models.DeletedAdapter)


def pin(adapter_id: str) -> Call[models.PinnedAdapter]:
    """Keep an adapter in memory."""
    return Call("POST", f"{_adapter_path(adapter_id)}/pin", models.PinnedAdapter)


def unpin(adapter_id: str) -> Call[models.PinnedAdapter]:
    """Let an adapter leave memory."""
    return Call("POST", f"{_adapter_path(adapter_id)}/unpin", models.PinnedAdapter)


def diagnose(adapter_id: str, **fields: int | None) -> Call[models.DiagnoseResponse]:
    """Estimate an adapter on its own support, with `folds` and `samples`."""
    path = f"{_adapter_path(adapter_id)}/diagnose"
    return Call("POST", path, models.DiagnoseResponse, _given(fields))


# ---- names of adapters ---------------------------------------------------------------------------


def put_name(name: str, adapter_id: str, **fields: int | str | None) -> Call[models.Name]:
    """Point a name to an adapter, with `if_version` and `note`."""
    body = _given({"adapter_id": adapter_id, **fields})
    return Call("PUT", _name_path(name), models.Name, body)


def names(page_size: int, after: str | None = None) -> Call[models.NameList]:
    """List a page of names, from the one behind the name `after`."""
    query = _given({"limit": page_size, "after": after})
    return Call("GET", "/v1/names", models.NameList, query=query)


def names_after(page: models.NameList, page_size: int) -> Call[models.NameList] | None:
    """List the page behind `page`, if there is one."""
    return names(page_size, page.data[-1].name) if page.has_more and page.data else None


def name(name: str, before: int | None = None) -> Call[models.NameWithHistory]:
    """Get one name with its newest versions, those before the number `before`."""
    return Call("GET", _name_path(name), models.NameWithHistory, query=_given({"before": before}))


def rollback_name(name: str, version: int, **fields: int | str | None) -> Call[models.Name]:
    """Point a name to the adapter of an earlier version, with `if_version` and `note`."""
    body = _given({"version": version, **fields})
    return Call("POST", f"{_name_path(name)}/rollback", models.Name, body)


def delete_name(name: str) -> Call[models.DeletedName]:
    """Delete a name."""
    return Call("DELETE", _name_path(name), models.DeletedName)


# ---- predictions ---------------------------------------------------------------------------------


def predict(inputs: InputsLike, **fields: Any) -> Call[models.PredictResponse]:
    """Answer `inputs`, with `PredictFields`."""
    if fields.get("support") is not None:
        fields["support"] = labelled_rows(fields["support"], "support")
    body = _given({"inputs": input_rows(inputs), **fields})
    return Call("POST", "/v1/predict", models.PredictResponse, body)


# ---- typed questions -----------------------------------------------------------------------------


def decide(
    inputs: Iterable[str],
    questions: Iterable[QuestionLike] | None = None,
    cases: CasesLike | None = None,
    **fields: Any,
) -> Call[models.DecideResponse]:
    """Answer `questions` about each of `inputs`, with `DecideFields`."""
    body = _given({"inputs": text_rows(inputs), **_asked(questions, cases), **fields})
    return Call("POST", "/v1/decide", models.DecideResponse, body)


def _asked(questions: Iterable[QuestionLike] | None, cases: CasesLike | None) -> dict[str, Any]:
    return {
        "questions": None if questions is None else question_rows(questions),
        "cases": None if cases is None else case_rows(cases),
    }


# ---- calibrated gates ----------------------------------------------------------------------------


def calibrate(adapter_id: str, examples: SupportLike, **fields: Any) -> Call[models.Calibration]:
    """Calibrate an adapter on labelled examples, with `CalibrateFields`."""
    body = _given({"examples": labelled_rows(examples), **fields})
    return Call("POST", f"{_adapter_path(adapter_id)}/calibrate", models.Calibration, body)


def calibration(adapter_id: str) -> Call[models.Calibration]:
    """Get the adapter's calibration."""
    return Call("GET", f"{_adapter_path(adapter_id)}/calibration", models.Calibration)


def delete_calibration(adapter_id: str) -> Call[models.DeletedCalibration]:
    """Delete the adapter's calibration."""
    return Call("DELETE", f"{_adapter_path(adapter_id)}/calibration", models.DeletedCalibration)


def feedback(adapter_id: str, labels: Mapping[str, str]) -> Call[models.FeedbackResponse]:
    """Send the right answers of predictions, by prediction id."""
    rows = [{"prediction_id": id, "label": label} for id, label in labels.items()]
    path = f"{_adapter_path(adapter_id)}/feedback"
    return Call("POST", path, models.FeedbackResponse, {"feedback": rows})


# ---- the server ----------------------------------------------------------------------------------


def served() -> Call[models.ModelList]:
    """List the models that are served."""
    return Call("GET", "/v1/models", models.ModelList)


def limits() -> Call[models.LimitsReport]:
    """Get what the server accepts."""
    return Call("GET", "/v1/limits", models.LimitsReport)


def ready() -> Call[models.Health]:
    """Ask whether work is taken. A probe does not wait as long as work may take."""
    return Call("GET", "/readyz", models.Health, timeout_seconds=5)


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _adapter_path(adapter_id: str) -> str:
    if not adapter_id:
        raise ValueError("the adapter's id is empty")
    return f"/v1/adapters/{quote(adapter_id, safe='')}"


def _name_path(name: str) -> str:
    if not name:
        raise ValueError("the name is empty")
    return f"/v1/names/{quote(name, safe='')}"
