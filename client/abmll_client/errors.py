"""What can go wrong: no answer, an answer that cannot be read, or the server's error object."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from pydantic import ValidationError

from abmll_client.models import ErrorBody, ErrorResponse

_RETRYABLE = frozenset({408, 429, 502, 503, 504, 507})
_QUOTA = "quota_exceeded"
_WILL_NOT_RECOVER = frozenset({"load_failed", _QUOTA})


class ClientError(Exception):
    """Base of all errors of this client.

    `retryable` says that the same request may succeed later, `retry_after_seconds` when, if the
    server said so.
    """

    retryable: bool = False
    retry_after_seconds: float | None = None


class ConnectionFailedError(ClientError):
    """The server could not be reached, or the connection broke or timed out before an answer, or
    before the end of a stream.
    """

    retryable = True


class UnreadableAnswerError(ClientError):
    """The server answered with success, in a form that this client does not know."""


class NotAdaptedError(ClientError):
    """There is no adapter: its making ended without one, or goes on beyond the time to wait.

    `status` is that of its progress: `failed`, `cancelled` or `expired`, or `queued` or `running`,
    where it goes on and asking again joins it. `code` and `message` say why it ended.
    """

    def __init__(self, adapter_id: str, status: str, code: str | None, message: str) -> None:
        super().__init__(adapter_id, status, code, message)
        self.adapter_id, self.status, self.code, self.message = adapter_id, status, code, message
        self.retryable = status in ("queued", "running") or code == "adaptation_lost"

    def __str__(self) -> str:
        return f"adapter {self.adapter_id} is {self.status}: {self.message}"


class StatusError(ClientError):
    """The server refused or failed. The fields are those of its error object.

    `code` is stable, `param` is the path of the field at fault, `adapter_id` names the adapter that
    a retry will join or find.
    """

    def __init__(self, error: ErrorBody, status: int, retry_after_seconds: float | None = None) -> None:
        super().__init__(error, status, retry_after_seconds)  # all of them, so that it pickles
        self.code, self.message, self.param = error.code, error.message, error.param
        self.request_id, self.adapter_id = error.request_id, error.adapter_id
        self.status, self.retry_after_seconds = status, retry_after_seconds
        self.retryable = status in _RETRYABLE and error.code not in _WILL_NOT_RECOVER

    def __str__(self) -> str:
        where = f" ({self.param})" if self.param else ""
        return f"{self.status} {self.code}{where}: {self.message} [request {self.request_id}]"


class InvalidRequestError(StatusError):
    """Any other 4xx: the request cannot be accepted as it is."""


class AccessError(StatusError):
    """401, 403: no valid key, or one that may not do this; also a quota (429) that is used up."""


class NotFoundError(StatusError):
    """404: no such adapter, model or route."""


class BusyError(StatusError):
    """429: the server has as much work as it takes on."""


class ServerError(StatusError):
    """Any other 5xx: the server's fault."""


class UnavailableError(ServerError):
    """502, 503, 507: the server starts, shuts down, has no worker or no room on its disk, or a proxy
    cannot reach it.
    """


class TookTooLongError(ServerError):
    """408, 504: not done in time; a retry joins the adaptation that goes on."""


_BY_STATUS: dict[int, type[StatusError]] = {
    401: AccessError,
    403: AccessError,
    404: NotFoundError,
    408: TookTooLongError,
    429: BusyError,
    502: UnavailableError,
    503: UnavailableError,
    504: TookTooLongError,
    507: UnavailableError,
}


_CODES: dict[int, str] = {
    400: "malformed_json",
    401: "invalid_api_key",
    403: "insufficient_scope",
    404: "not_found unknown_adapter unknown_batch unknown_file unknown_model unknown_name unknown_prediction",
    405: "method_not_allowed",
    408: "body_timeout",
    409: "adaptation_cancelled adapter_named batch_ended file_in_use name_changed",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "adapter_mismatch calibration_mismatch calibration_missing cannot_certify certificate_revoked "
    "fit_diverged invalid_name invalid_options invalid_request invalid_support limit_exceeded "
    "price_exceeds_deadline prompt_too_long texts_not_stored undiagnosable",
    429: "queue_full quota_exceeded rate_limited",
    499: "client_closed_request",
    500: "internal_error",
    503: "adaptation_lost draining load_failed starting store_unavailable worker_lost",
    504: "deadline_exceeded",
    507: "store_failed",
}
"""The server's codes by the status of their answers: events have no status."""
STATUS_OF_CODE = {code: status for status, codes in _CODES.items() for code in codes.split()}


def error_of(response: httpx.Response) -> StatusError:
    """Read the error from a response that is not 2xx. The body may be a proxy's, of any form."""
    status = response.status_code
    try:
        body = ErrorResponse.model_validate_json(response.content).error
    except ValidationError:
        body = ErrorBody(
            code=f"http_{status}",
            message=response.reason_phrase or "no message",
            param=None,
            request_id=response.headers.get("x-request-id", "unknown"),
        )
    return _error(body, status, retry_after_seconds(response.headers.get("retry-after", "")))


def error_of_event(answer: ErrorResponse) -> StatusError:
    """Make the error of an event `error`. Its status is that of an answer with the same code."""
    return _error(answer.error, STATUS_OF_CODE.get(answer.error.code, 500), None)


def _error(body: ErrorBody, status: int, retry_after: float | None) -> StatusError:
    kind = _BY_STATUS.get(status, ServerError if status >= 500 else InvalidRequestError)
    if body.code == _QUOTA:  # unlike a busy server, it does not help to wait
        kind = AccessError
    return kind(body, status, retry_after)


def retry_after_seconds(header: str) -> float | None:
    """Seconds from now that `Retry-After` asks to wait, at least 0.

    The header holds a number or an HTTP date (RFC 9110); anything else gives None.
    """
    text = header.strip()
    try:
        seconds = float(text) if text[:1].isdigit() else _seconds_until(text)
    except (ValueError, OverflowError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _seconds_until(date: str) -> float:
    parsed = parsedate_to_datetime(date)
    if parsed.tzinfo is None:  # RFC 9110: HTTP dates are in UTC
        parsed = parsed.replace(tzinfo=UTC)
    return (parsed - datetime.now(UTC)).total_seconds()
