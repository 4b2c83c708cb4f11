"""Adapters in memory, in front of the disk.

The least recently used adapters are dropped first. Adapters in use and pinned ones are not dropped.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from service.errors import LimitExceededError, over_limit
from service.metrics import Metrics

if TYPE_CHECKING:
    from model_store.adapters.store import StoredAdapter


class AdapterCache:
    """Holds at most `limit_bytes` of adapters, unless more are in use. Used from one event loop."""

    def __init__(self, limit_bytes: int, metrics: Metrics) -> None:
        self._limit_bytes, self._metrics = limit_bytes, metrics
        self._adapters: OrderedDict[str, StoredAdapter] = OrderedDict()
        self._leases: Counter[str] = Counter()
        self._pinned: set[str] = set()
        self._used_bytes = 0

    def get(self, adapter_id: str) -> StoredAdapter | None:
        """Return the adapter, which counts as used now; None where it is not in memory."""
        if adapter_id in self._adapters:
            self._adapters.move_to_end(adapter_id)
        return self._adapters.get(adapter_id)

    def put(self, adapter: StoredAdapter) -> None:
        """Hold an adapter, and drop others where the limit requires it."""
        if self.get(adapter.manifest.id) is None:
            self._adapters[adapter.manifest.id] = adapter
            self._count(_size_bytes(adapter))
        self._evict()

    def replace(self, adapter: StoredAdapter) -> None:
        """Replace the adapter in memory that has the same id, if any; the posterior is the same."""
        if adapter.manifest.id in self._adapters:
            self._adapters[adapter.manifest.id] = adapter

    def drop(self, adapter_id: str) -> None:
        """Drop an adapter, pinned or not. Requests that are using it are not affected."""
        self._pinned.discard(adapter_id)
        adapter = self._adapters.pop(adapter_id, None)
        if adapter is not None:
            self._count(-_size_bytes(adapter))

    @contextmanager
    def lease(self, adapter_id: str) -> Iterator[None]:
        """Do not evict the adapter until the context ends, in memory now or put there meanwhile."""
        self._leases[adapter_id] += 1
        try:
            yield
        finally:
            self._leases[adapter_id] -= 1
            if not self._leases[adapter_id]:
                del self._leases[adapter_id]
            self._evict()

    def pin(self, adapter: StoredAdapter) -> None:
        """Hold the adapter until `unpin` or `drop`.

        Raises `LimitExceededError` if all pinned adapters together would exceed the limit.
        """
        pinned = self._pinned | {adapter.manifest.id}
        others = (self._adapters[id] for id in pinned - {adapter.manifest.id})
        needed = _size_bytes(adapter) + sum(map(_size_bytes, others))
        if needed > self._limit_bytes:
            found = f"pinned adapters would take {needed} bytes of memory"
            message = over_limit(found, self._limit_bytes, "adapter_memory_bytes")
            raise LimitExceededError(message, "adapter_id")
        self._pinned = pinned
        self.put(adapter)

    def unpin(self, adapter_id: str) -> None:
        """Allow the adapter to be dropped again."""
        self._pinned.discard(adapter_id)
        self._evict()

    def _evict(self) -> None:
        free = (id for id in list(self._adapters) if id not in self._pinned and id not in self._leases)
        while self._used_bytes > self._limit_bytes and (oldest := next(free, None)) is not None:
            self.drop(oldest)
            self._metrics.evictions.inc()

    def _count(self, change_bytes: int) -> None:
        self._used_bytes += change_bytes
        self._metrics.memory_bytes.set(self._used_bytes)


def _size_bytes(adapter: StoredAdapter) -> int:
    return adapter.posterior.nbytes
