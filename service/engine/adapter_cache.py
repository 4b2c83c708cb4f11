"""Adapters in memory, in front of the disk.

The least recently used adapters are dropped first. Adapters in use and pinned ones are not dropped.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from service.errors import LimitExceededError, over_limit
from service.executors.contract import DEFAULT_TENANT
from service.metrics import Metrics

if TYPE_CHECKING:
    from model_store.adapters.store import StoredAdapter

_Key: TypeAlias = tuple[str, str]  # tenant and id


@dataclass
class _Memory:
    """Adapters of all tenants, the least recently used first."""

    limit_bytes: int
    metrics: Metrics
    adapters: OrderedDict[_Key, StoredAdapter] = field(default_factory=OrderedDict)
    leases: Counter[_Key] = field(default_factory=Counter)
    pinned: set[_Key] = field(default_factory=set)
    used_bytes: int = 0


class AdapterCache:
    """The adapters of one tenant in a memory that all tenants share. Used from one event loop.

    The memory holds at most `limit_bytes` of adapters, unless more are in use. An adapter of
    another tenant is never found.
    """

    def __init__(self, limit_bytes: int, metrics: Metrics) -> None:
        self._memory, self._tenant = _Memory(limit_bytes, metrics), DEFAULT_TENANT

    def of(self, tenant: str) -> AdapterCache:
        """Return the cache of another tenant in the same memory."""
        other = AdapterCache.__new__(AdapterCache)
        other._memory, other._tenant = self._memory, tenant
        return other

    def get(self, adapter_id: str) -> StoredAdapter | None:
        """Return the adapter, which counts as used now; None where it is not in memory."""
        key, adapters = self._key(adapter_id), self._memory.adapters
        if key in adapters:
            adapters.move_to_end(key)
        return adapters.get(key)

    def put(self, adapter: StoredAdapter) -> None:
        """Hold an adapter, and drop others where the limit requires it."""
        if self.get(adapter.manifest.id) is None:
            self._memory.adapters[self._key(adapter.manifest.id)] = adapter
            self._count(_size_bytes(adapter))
        self._evict()

    def replace(self, adapter: StoredAdapter) -> None:
        """Replace the adapter in memory that has the same id, if any; the posterior is the same."""
        key = self._key(adapter.manifest.id)
        if key in self._memory.adapters:
            self._memory.adapters[key] = adapter

    def drop(self, adapter_id: str) -> None:
        """Drop an adapter, pinned or not. Requests that are using it are not affected."""
        self._drop(self._key(adapter_id))

    @contextmanager
    def lease(self, adapter_id: str) -> Iterator[None]:
        """Do not evict the adapter until the context ends, in memory now or put there meanwhile."""
        key, leases = self._key(adapter_id), self._memory.leases
        leases[key] += 1
        try:
            yield
        finally:
            leases[key] -= 1
            if not leases[key]:
                del leases[key]
            self._evict()

    def pin(self, adapter: StoredAdapter) -> None:
        """Hold the adapter until `unpin` or `drop`.

        Raises `LimitExceededError` if all pinned adapters together would exceed the limit.
        """
        key, memory = self._key(adapter.manifest.id), self._memory
        others = (memory.adapters[other] for other in memory.pinned - {key})
        needed = _size_bytes(adapter) + sum(map(_size_bytes, others))
        if needed > memory.limit_bytes:
            found = f"pinned adapters would take {needed} bytes of memory"
            message = over_limit(found, memory.limit_bytes, "adapter_memory_bytes")
            raise LimitExceededError(message, "adapter_id")
        memory.pinned.add(key)
        self.put(adapter)

    def unpin(self, adapter_id: str) -> None:
        """Allow the adapter to be dropped again."""
        self._memory.pinned.discard(self._key(adapter_id))
        self._evict()

    def _key(self, adapter_id: str) -> _Key:
        return self._tenant, adapter_id

    def _drop(self, key: _Key) -> None:
        self._memory.pinned.discard(key)
        adapter = self._memory.adapters.pop(key, None)
        if adapter is not None:
            self._count(-_size_bytes(adapter))

    def _evict(self) -> None:
        memory = self._memory
        free = (key for key in list(memory.adapters) if key not in memory.pinned and key not in memory.leases)
        while memory.used_bytes > memory.limit_bytes and (oldest := next(free, None)) is not None:
            self._drop(oldest)
            memory.metrics.evictions.inc()

    def _count(self, change_bytes: int) -> None:
        self._memory.used_bytes += change_bytes
        self._memory.metrics.memory_bytes.set(self._memory.used_bytes)


def _size_bytes(adapter: StoredAdapter) -> int:
    return adapter.posterior.nbytes
