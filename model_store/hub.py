"""Failures of the Hugging Face hub, as one line with a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

from model_store.errors import FetchError, PublishError

# What the hub's library raises for an address that does not answer. It is of the HTTP library that
# this version of it stands on.
_NO_ANSWER: type[Exception] = HfHubHTTPError.__bases__[0]
_FAILURES: tuple[type[Exception], ...] = (
    HfHubHTTPError,
    _NO_ANSWER,
    OfflineModeIsEnabled,
    LocalEntryNotFoundError,
    HFValidationError,
)


@contextmanager
def hub_failures(kind: type[FetchError | PublishError], what: str) -> Iterator[None]:
    """Raise what the hub's library raises as one line of `kind` that begins with `what`.

    It ends with the cause, and with a remedy where one is known.
    """
    try:
        yield
    except _FAILURES as error:
        raise kind(f"{what}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """Say why the hub did not do what it was asked."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the hub is not asked"
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision"
    if isinstance(error, EntryNotFoundError) and isinstance(error, HfHubHTTPError):
        return "there is no such file"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in {401, 403, 404}:
        return (
            f"the hub says {status}: there is no such repository, or it is not yours; HF_TOKEN names who asks"
        )
    return " ".join(str(error).split())
