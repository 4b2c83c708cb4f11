"""Errors of the service: one hierarchy, and the functions that map all other errors to it.

Status codes: 400 not JSON, 401 no valid key, 403 the key lacks a scope, 404 unknown, 408 body too
slow, 409 refused because of how things stand now, 413 body too large, 415 not declared as JSON, 422
JSON that cannot be accepted, 429 busy, 500 error of the server, 503 this server accepts no requests
now, 504 took too long, 507 the disk takes nothing.
"""

from __future__ import annotations

import copy
import errno
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from abmll.errors import AbmllError, FitDivergedError, OptionsError, PromptTooLongError, SupportError
from model_store import errors as stored


class ServiceError(Exception):
    """Base class of the service's errors.

    `code` is a stable name. `retryable` says whether the same request may succeed later. `param` is
    the path of the wrong field, such as `support[3].output`; `location` has its parts one by one,
    where a surface has placed the error (`placed`). `adapter_id` is the adapter that a retry joins
    or finds. All arguments go to `Exception`, so instances pickle.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    usual_retry_seconds: ClassVar[int | None] = None
    location: tuple[str | int, ...] = ()

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
        """Return the same error with another name of the wrong field."""
        other = copy.copy(self)
        other.param = param
        return other

    def about(self, what: str) -> Self:
        """Return the same error with a message that says what it is about."""
        other = copy.copy(self)
        other.message = f"{what}: {self.message}"
        return other

    def placed(self, location: Sequence[str | int]) -> Self:
        """Return the same error at a field whose path has these parts."""
        other = self.at(field_path(location))
        other.location = tuple(location)
        return other

    @property
    def details(self) -> dict[str, Any]:
        """Additional fields of the native surface's error object."""
        return {}


class InternalError(ServiceError):
    """An unexpected error. The message shows nothing of the cause, which is in the log."""


class StoreFailedError(ServiceError):
    """The disk is full, may not be written, or failed. Nothing of the request was stored."""

    code, status, retryable, usual_retry_seconds = "store_failed", 507, True, 30


class MalformedJsonError(ServiceError):
    """The body is not JSON in UTF-8. NaN and Infinity are not JSON."""

    code, status = "malformed_json", 400


class UnauthenticatedError(ServiceError):
    """The request has no key, or none that is valid now."""

    code, status = "invalid_api_key", 401


class ForbiddenError(ServiceError):
    """The key is valid, but lacks the scope that the request needs."""

    code, status = "insufficient_scope", 403


class NotFoundError(ServiceError):
    """There is no such route."""

    code, status = "not_found", 404


class UnknownAdapterError(NotFoundError):
    """No adapter has this id."""

    code = "unknown_adapter"


class UnknownModelError(NotFoundError):
    """This server does not serve the named model."""

    code = "unknown_model"


class UnknownNameError(NotFoundError):
    """No adapter has this name, or the name has no such version."""

    code = "unknown_name"


class UnknownFileError(NotFoundError):
    """No file has this id, or its time is over."""

    code = "unknown_file"


class UnknownBatchError(NotFoundError):
    """No batch has this id."""

    code = "unknown_batch"


class FileInUseError(ServiceError):
    """The file is not deleted, because a batch that has not ended uses it."""

    code, status = "file_in_use", 409


class BatchEndedError(ServiceError):
    """The batch has ended, so it cannot be cancelled."""

    code, status = "batch_ended", 409


class NameChangedError(ServiceError):
    """The name is at another version than the request expects (`if_version`)."""

    code, status = "name_changed", 409


class AdapterNamedError(ServiceError):
    """The adapter is not deleted, because it is the current version of a name."""

    code, status = "adapter_named", 409


class MethodNotAllowedError(ServiceError):
    """The route does not take this method."""

    code, status = "method_not_allowed", 405


class BodyTimeoutError(ServiceError):
    """The body did not arrive within `body_seconds`. The connection is closed."""

    code, status, retryable = "body_timeout", 408, True


class BodyTooLargeError(ServiceError):
    """The body has more than `max_body_bytes` bytes, or the file more than `max_file_bytes`."""

    code, status = "body_too_large", 413


class UnsupportedMediaTypeError(ServiceError):
    """The body is not declared as JSON."""

    code, status = "unsupported_media_type", 415


class InvalidRequestError(ServiceError):
    """A field is missing, unknown, of the wrong type or out of range."""

    code, status = "invalid_request", 422


class LimitExceededError(InvalidRequestError):
    """More examples, inputs or options, or longer texts, than this server accepts.

    The message has the limit and its setting (`over_limit`).
    """

    code = "limit_exceeded"


class PriceExceedsDeadlineError(InvalidRequestError):
    """An idle worker would take over 1.5 times the deadline, so the work is not begun.

    The message has the price and the deadline.
    """

    code = "price_exceeds_deadline"


class PromptTooLongForContextError(InvalidRequestError):
    """A prompt does not fit the model's context, and the request does not set `truncate`."""

    code = "prompt_too_long"


class InvalidNameError(InvalidRequestError):
    """The text cannot be the name of an adapter."""

    code = "invalid_name"


class InvalidSupportError(InvalidRequestError):
    """The support is no task to adapt to."""

    code = "invalid_support"


class InvalidOptionsError(InvalidRequestError):
    """The options are fewer than two, empty or repeated, or an output is not among them."""

    code = "invalid_options"


class AdapterMismatchError(InvalidRequestError):
    """The adapter was made with another base model or global posterior than this server has."""

    code = "adapter_mismatch"


class TextsNotStoredError(InvalidRequestError):
    """The adapter cannot be made again: the texts of its examples were not stored with it."""

    code = "texts_not_stored"


class CalibrationMissingError(InvalidRequestError):
    """The request needs a calibration, and the adapter has none or an incomplete one."""

    code = "calibration_missing"


class CalibrationMismatchError(InvalidRequestError):
    """The request's settings give other confidences than those that were calibrated."""

    code = "calibration_mismatch"


class CertificateRevokedError(InvalidRequestError):
    """A drift alarm has shown that inputs or errors differ from those of the calibration."""

    code = "certificate_revoked"


class CannotCertifyError(InvalidRequestError):
    """The calibration has too few labels for the requested target.

    `about_n_more_labels` estimates how many more suffice. None means that more labels of this kind
    do not help.
    """

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
        """The estimate, also if it is None."""
        return {"about_n_more_labels": self.about_n_more_labels}


class UnknownPredictionError(NotFoundError):
    """The calibration has no prediction with this id, or no longer has it."""

    code = "unknown_prediction"


class UndiagnosableError(InvalidRequestError):
    """The adapter's support allows no diagnosis: it is free text, or has too few examples."""

    code = "undiagnosable"


class QueueFullError(ServiceError):
    """As many requests wait or run as this server accepts."""

    code, status, retryable = "queue_full", 429, True


class RateLimitedError(ServiceError):
    """The tenant has sent more requests, or more work, than its limits allow in a minute."""

    code, status, retryable = "rate_limited", 429, True


class QuotaExceededError(ServiceError):
    """The tenant has as many adapters, or bytes of them, as its limits allow. Waiting does not
    help.
    """

    code, status = "quota_exceeded", 429


class StartingError(ServiceError):
    """The model is still loading."""

    code, status, retryable, usual_retry_seconds = "starting", 503, True, 5


class LoadFailedError(ServiceError):
    """The model could not be loaded; this process will not recover."""

    code, status = "load_failed", 503


class DrainingError(ServiceError):
    """The server is shutting down and accepts no new requests."""

    code, status, retryable, usual_retry_seconds = "draining", 503, True, 10


class WorkerLostError(ServiceError):
    """No worker is up, or two workers in turn were lost during the same job."""

    code, status, retryable, usual_retry_seconds = "worker_lost", 503, True, 5


class StoreUnavailableError(ServiceError):
    """The store that servers share does not answer now. A write may have happened, or not."""

    code, status, retryable, usual_retry_seconds = "store_unavailable", 503, True, 5


class ClientGoneError(ServiceError):
    """The client closed the connection. Nobody reads this answer; the log and the metrics have it."""

    code, status = "client_closed_request", 499


class DivergedError(InvalidRequestError):
    """The adaptation that was asked for left the finite numbers, so nothing is stored."""

    code = "fit_diverged"


class AdaptationCancelledError(ServiceError):
    """A client cancelled the adaptation that others waited for."""

    code, status = "adaptation_cancelled", 409


class AdaptationLostError(ServiceError):
    """The server ended before the adapter was made. The same request makes it."""

    code, status, retryable, usual_retry_seconds = "adaptation_lost", 503, True, 5


class DeadlineExceededError(ServiceError):
    """The request took too long. Its adaptation continues for a while, and a retry joins it."""

    code, status, retryable = "deadline_exceeded", 504, True


_BY_METHOD_ERROR: tuple[tuple[type[AbmllError], type[ServiceError]], ...] = (
    (PromptTooLongError, PromptTooLongForContextError),
    (OptionsError, InvalidOptionsError),
    (SupportError, InvalidSupportError),
    (FitDivergedError, DivergedError),
    (AbmllError, InvalidRequestError),
)
# How a system refuses to store. Requests touch no files but those of stores.
_NOT_STORED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_NOT_IN_THE_REQUEST = {"body", "query", "path"}
_BY_STATUS: dict[int, tuple[type[ServiceError], str]] = {
    404: (NotFoundError, "there is no such route"),
    405: (MethodNotAllowedError, "this route does not take this method"),
}


def over_limit(found: str, limit: int | str, setting: str) -> str:
    """Return the message for what exceeds `limit`, which the field `setting` of `Settings` changes."""
    return f"{found}; the limit is {limit} (setting {setting})"


def error_kinds(base: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    """Yield every error of this module with a code of its own, the first class of a code first."""
    for error in base.__subclasses__():
        yield from error_kinds(error)
        if error.__module__ == __name__ and ("code" in vars(error) or error is InternalError):
            yield error


def from_exception(error: BaseException, param: str | None = None) -> ServiceError:
    """Map any exception to a service error.

    The method's errors keep their message; unexpected ones become a 500.
    """
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, stored.StoreUnavailableError):
        return StoreUnavailableError(str(error))
    if _is_refusal_to_store(error):
        return store_failure(error, "the request is not done, because the server cannot store it")
    for theirs, ours in _BY_METHOD_ERROR:
        if isinstance(error, theirs):
            return ours(str(error), param)
    return InternalError("the server failed to answer; its log has the details under this request id")


def store_failure(error: BaseException, message: str) -> ServiceError:
    """Map the error of a write: to a 503 where a shared store does not answer, else to a 507.

    The new message is `message` and the reason. It names no folder of the server.
    """
    if isinstance(error, stored.StoreUnavailableError):
        return StoreUnavailableError(f"{message}: {error}")
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        return StoreFailedError(f"{message}: {cause.strerror}")
    full = isinstance(error, stored.StorageFullError)
    return StoreFailedError(f"{message}: the disk is full" if full else message)


def _is_refusal_to_store(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _NOT_STORED
    return isinstance(error, stored.StorageFullError | stored.UnusableFolderError)


def from_status(status: int) -> ServiceError:
    """Map the status code of an HTTP framework's exception to a service error."""
    if status not in _BY_STATUS:
        return InvalidRequestError("the request could not be understood")
    ours, message = _BY_STATUS[status]
    return ours(message)


def from_validation(errors: Sequence[Mapping[str, Any]]) -> InvalidRequestError:
    """Map the first of pydantic's `errors` to a service error, with its path and not its input."""
    first = errors[0]
    location = [part for part in first["loc"] if part not in _NOT_IN_THE_REQUEST and not _is_tag(part)]
    message = str(first["msg"]).removeprefix("Value error, ")
    return InvalidRequestError(message, field_path(location) or None)


def _is_tag(part: str | int) -> bool:
    """Return whether `part` is the tag of a union's branch (see `schemas.Input`), not a field."""
    return isinstance(part, str) and part.startswith("<") and part.endswith(">")


def field_path(location: Sequence[str | int]) -> str:
    """Format a path of fields: `("support", 3, "output")` becomes `support[3].output`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path
