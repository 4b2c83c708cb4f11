"""The contract between batches and the surfaces whose requests they send."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from service.errors import ServiceError
from service.principals.records import Principal


@dataclass(frozen=True)
class RowRequest:
    """A request of one row, checked.

    Rows with equal `key`s, which is not None, get the same answers together as one by one.
    `queries` is the number of inputs that the model answers for it, and `chars` the length of its
    texts.
    """

    request: Any
    key: Hashable | None
    queries: int
    chars: int


class Endpoint(Protocol):
    """A path to which rows are sent."""

    def read(self, body: Mapping[str, Any]) -> RowRequest:
        """Return the request of a row. Raises `ServiceError`."""

    async def answer(self, rows: Sequence[RowRequest], ids: Sequence[str], owner: Principal) -> Sequence[str]:
        """Return the answers to rows of one key as JSON texts, in order; `ids` are their requests'
        ids.

        Nobody waits for it: it is done in leftover capacity. Raises `ServiceError`, which is about
        all rows.
        """

    def refusal(self, error: ServiceError, request_id: str) -> tuple[int, str]:
        """Return the status, and as a JSON text the body, by which the path answers an error."""
