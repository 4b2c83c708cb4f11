"""Groups rows that follow each other into requests of the engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from service.bulk.contract import RowRequest
from service.bulk.lines import Row
from service.errors import ServiceError

GROUP_QUERIES = 64
"""Most inputs of a group of several rows."""
GROUP_CHARS = 1 << 17
"""Most characters of a group of several rows."""


@dataclass(frozen=True)
class ReadRow:
    """A row with its request, or with why there is none."""

    row: Row
    asked: RowRequest | ServiceError


def groups(rows: Iterable[ReadRow], most_queries: int = GROUP_QUERIES) -> Iterator[list[ReadRow]]:
    """Yield the rows in groups that are answered together, in order.

    The requests of a group of several have one key. Rows that are refused count as one input each.
    """
    group: list[ReadRow] = []
    first: RowRequest | None = None  # of the group
    queries = chars = 0
    for row in rows:
        asked = None if isinstance(row.asked, ServiceError) else row.asked
        more_queries, more_chars = (asked.queries, asked.chars) if asked else (1, 0)
        full = queries + more_queries > most_queries or chars + more_chars > GROUP_CHARS
        apart = asked and first and (asked.key is None or asked.key != first.key)
        if group and (full or apart):
            yield group
            group, first, queries, chars = [], None, 0, 0
        group.append(row)
        first = first or asked
        queries, chars = queries + more_queries, chars + more_chars
    if group:
        yield group
