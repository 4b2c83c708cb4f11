"""What the service answers when it refuses or fails: one hierarchy, and the one place that maps other errors onto it.

Status codes: 400 not JSON, 404 unknown, 413 body too large, 415 not declared as JSON, 422 JSON that cannot be accepted,
429 busy, 503 this instance does not serve now, 504 took too long, 500 our fault.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from abmll.errors import AbmllError, OptionsError, PromptTooLongError, SupportError


class ServiceError(Exception):
    """Base of all. `code` is stable, `retryable` says whether the same request may succeed later.

    `param` is the path of the offending field (`support[3].output`); `adapter_id` lets a retry name what it waits for.
    All arguments go to `Exception`, so instances pickle.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    usual_retry_seconds: ClassVar[int | None] = None

    def __init__(
        self,
        message: str,
        param: str | None = None,
        retry_after_seconds: int | None = None,
        adapter_id: str | None = None,
    ) -> None:
        super().__init__(message, param, retry_after_seconds, adapter_id)
        self.message, self.param = message, param
        self.retry_after_seconds = retry_after_seconds or self.usual_retry_seconds
        self.adapter_id = adapter_id

    def __str__(self) -> str:
        return self.message

    def at(self, param: str) -> Self:
        """The same error, the field at fault called otherwise."""
        other = copy.copy(self)
        other.param = param
        return other

    @property
    def details(self) -> dict[str, Any]:
        """What else the error object of our own surface has, for programs."""
        return {}


class InternalError(ServiceError):
    """Something unforeseen; the message tells nothing of the inside."""


class StoreFailedError(ServiceError):
    """The adapter could not be written, so it is not acknowledged."""

    code, retryable = "store_failed", True


class MalformedJsonError(ServiceError):
    """The body is not JSON in UTF-8; NaN and Infinity are not JSON."""

    code, status = "malformed_json", 400


class NotFoundError(ServiceError):
    """No such route."""

    code, status = "not_found", 404


class UnknownAdapterError(NotFoundError):
    """No adapter has this id."""

    code = "unknown_adapter"


class UnknownModelError(NotFoundError):
    """This server does not serve the model that was asked for."""

    code = "unknown_model"


class MethodNotAllowedError(ServiceError):
    """The route exists, for another method."""

    code, status = "method_not_allowed", 405


class BodyTooLargeError(ServiceError):
    """The body exceeds `max_body_bytes`."""

    code, status = "body_too_large", 413


class UnsupportedMediaTypeError(ServiceError):
    """The body is not declared as JSON."""

    code, status = "unsupported_media_type", 415


class InvalidRequestError(ServiceError):
    """A field is missing, unknown, of the wrong type or out of range."""

    code, status = "invalid_request", 422


class LimitExceededError(InvalidRequestError):
    """More examples, inputs, options or longer texts than this server accepts; the message has the limit."""

    code = "limit_exceeded"


class PromptTooLongForContextError(InvalidRequestError):
    """A prompt does not fit the model's context, and `truncate` was not asked for."""

    code = "prompt_too_long"


class InvalidSupportError(InvalidRequestError):
    """The support set cannot be adapted to."""

    code = "invalid_support"


class InvalidOptionsError(InvalidRequestError):
    """The options cannot be chosen from, or an output is not among them."""

    code = "invalid_options"


class AdapterMismatchError(InvalidRequestError):
    """The adapter was made for another base or another global posterior than the one that is served."""

    code = "adapter_mismatch"


class CalibrationMissingError(InvalidRequestError):
    """A certified gate, a coverage or a prediction set was asked of an adapter that is not calibrated, or not completely yet."""

    code = "calibration_missing"


class CalibrationMismatchError(InvalidRequestError):
    """The request would compute confidences otherwise than they were calibrated."""

    code = "calibration_mismatch"


class CertificateRevokedError(InvalidRequestError):
    """A drift alarm has shown that the calibration no longer describes what is asked."""

    code = "certificate_revoked"


class CannotCertifyError(InvalidRequestError):
    """The labels do not suffice for what is asked; `about_n_more_labels` might (None: more of the same kind promise nothing)."""

    code = "cannot_certify"

    def __init__(
        self,
        message: str,
        param: str | None = None,
        retry_after_seconds: int | None = None,
        adapter_id: str | None = None,
        about_n_more_labels: int | None = None,
    ) -> None:
        super().__init__(message, param, retry_after_seconds, adapter_id)
        self.args = (*self.args, about_n_more_labels)
        self.about_n_more_labels = about_n_more_labels

    @property
    def details(self) -> dict[str, Any]:
        """The number, also where it is none."""
        return {"about_n_more_labels": self.about_n_more_labels}


class UnknownPredictionError(NotFoundError):
    """No prediction under this calibration has this id, or it is too old to be remembered."""

    code = "unknown_prediction"


class UndiagnosableError(InvalidRequestError):
    """Nothing can be said of the adapter from its own support: free text, or too few examples."""

    code = "undiagnosable"


class QueueFullError(ServiceError):
    """As many requests as this server takes on are waiting or running."""

    code, status, retryable = "queue_full", 429, True


class StartingError(ServiceError):
    """The model is still loading."""

    code, status, retryable, usual_retry_seconds = "starting", 503, True, 5


class LoadFailedError(ServiceError):
    """The model could not be loaded; this process will not recover."""

    code, status = "load_failed", 503


class DrainingError(ServiceError):
    """The server is shutting down and takes no new work."""

    code, status, retryable, usual_retry_seconds = "draining", 503, True, 10


class WorkerLostError(ServiceError):
    """No worker is there to do it, or two in turn were lost while they did."""

    code, status, retryable, usual_retry_seconds = "worker_lost", 503, True, 5


class ClientGoneError(ServiceError):
    """The client closed the connection; nobody reads this answer, but the log and the metrics count it."""

    code, status = "client_closed_request", 499


class DeadlineExceededError(ServiceError):
    """The request took too long. Its adaptation goes on for a while: a retry joins it."""

    code, status, retryable = "deadline_exceeded", 504, True


_OF_METHOD: tuple[tuple[type[AbmllError], type[ServiceError]], ...] = (
    (PromptTooLongError, PromptTooLongForContextError),
    (OptionsError, InvalidOptionsError),
    (SupportError, InvalidSupportError),
    (AbmllError, InvalidRequestError),
)
_NOT_OF_THE_REQUEST = {"body", "query", "path", "<row>", "<text>", "<list>", "<number>", "<auto>"}
_OF_STATUS: dict[int, tuple[type[ServiceError], str]] = {
    404: (NotFoundError, "there is no such route"),
    405: (MethodNotAllowedError, "this route does not take this method"),
}


def from_exception(error: BaseException, param: str | None = None) -> ServiceError:
    """The service's error for any exception: what the method refuses keeps its message, the rest becomes a plain 500."""
    if isinstance(error, ServiceError):
        return error
    for theirs, ours in _OF_METHOD:
        if isinstance(error, theirs):
            return ours(str(error), param)
    return InternalError("the server failed to answer; its log has the details under this request id")


def from_status(status: int) -> ServiceError:
    """The service's error for one that the HTTP framework raised by status code."""
    if status not in _OF_STATUS:
        return InvalidRequestError("the request could not be understood")
    ours, message = _OF_STATUS[status]
    return ours(message)


def from_validation(errors: Sequence[Mapping[str, Any]]) -> InvalidRequestError:
    """The service's error for pydantic's `errors`: the first is told, with its path; the input is not repeated."""
    first = errors[0]
    # Names in brackets are those of a union's branches (see `schemas.Input`), no part of the request.
    location = [part for part in first["loc"] if part not in _NOT_OF_THE_REQUEST]
    message = str(first["msg"]).removeprefix("Value error, ")
    return InvalidRequestError(message, field_path(location) or None)


def field_path(location: Sequence[str | int]) -> str:
    """`("support", 3, "output")` as `support[3].output`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path
