"""Which adapters there are: memory in front of the disk, and the adaptations in flight."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from model_store.errors import StoreError
from service.engine.records import CacheOutcome
from service.errors import StoreFailedError, UnknownAdapterError
from service.metrics import Metrics

if TYPE_CHECKING:
    from model_store.adapters import AdapterManifest, AdapterStore, StoredAdapter

log = logging.getLogger(__name__)


class AdapterRegistry:
    """Owns the adapters of one server. Used from one event loop; the disk is read and written in threads.

    An adapter is in the store before anybody is told of it, so memory is only a cache: least recently used adapters are
    dropped beyond `memory_bytes`. A request in work holds its own reference, so dropping never hurts it. One id is
    adapted at most once at a time: whoever asks meanwhile joins.
    """

    def __init__(self, store: AdapterStore, memory_bytes: int, metrics: Metrics) -> None:
        self._store, self._memory_bytes, self._metrics = store, memory_bytes, metrics
        self._memory: OrderedDict[str, StoredAdapter] = OrderedDict()
        self._used_bytes = 0
        self._flights: dict[str, asyncio.Task[tuple[StoredAdapter, bool]]] = {}
        # Held while disk and memory change together, so that a deleted adapter is not put back by a slow read.
        self._lock = asyncio.Lock()

    @property
    def in_flight(self) -> int:
        """Adaptations (and first reads) under way."""
        return len(self._flights)

    async def get(self, adapter_id: str) -> StoredAdapter:
        """The adapter of this id. Raises `UnknownAdapterError`."""
        adapter = await self._find(adapter_id)
        if adapter is None:
            raise _unknown(adapter_id)
        return adapter

    async def obtain(
        self, adapter_id: str, make: Callable[[], Awaitable[StoredAdapter]]
    ) -> tuple[StoredAdapter, CacheOutcome]:
        """The adapter of this id, made with `make` if there is none.

        An adaptation that has begun goes on when its waiters leave: they were told the id, and come back for it.
        """
        flight = self._flights.get(adapter_id)
        joined = flight is not None
        if flight is None:
            flight = asyncio.create_task(self._find_or_make(adapter_id, make))
            self._flights[adapter_id] = flight
            flight.add_done_callback(partial(self._landed, adapter_id))
        adapter, made = await asyncio.shield(flight)
        if not made:
            return adapter, CacheOutcome.HIT
        return adapter, CacheOutcome.JOINED if joined else CacheOutcome.MISS

    async def delete(self, adapter_id: str) -> None:
        """Forget the adapter, on disk too. Raises `UnknownAdapterError`."""
        async with self._lock:
            deleted = await asyncio.to_thread(self._store.delete, adapter_id)
            adapter = self._memory.pop(adapter_id, None)
            if adapter is not None:
                self._count(-_size_bytes(adapter))
        if not deleted:
            raise _unknown(adapter_id)

    async def page(self, after: str | None, limit: int) -> tuple[list[AdapterManifest], bool]:
        """Manifests of at most `limit` adapters with ids beyond `after`, in order, and whether there are more."""
        found = await asyncio.to_thread(self._store.list, after, limit + 1)
        return found[:limit], len(found) > limit

    async def settle(self) -> None:
        """Wait until every adaptation in flight has ended."""
        while self._flights:
            await asyncio.wait(list(self._flights.values()))

    async def close(self) -> None:
        """Give up what is in flight and let another process own the store."""
        for flight in self._flights.values():
            flight.cancel()
        await self.settle()
        await asyncio.to_thread(self._store.close)

    async def _find(self, adapter_id: str) -> StoredAdapter | None:
        adapter = self._memory.get(adapter_id)
        if adapter is not None:
            self._memory.move_to_end(adapter_id)
            return adapter
        async with self._lock:
            adapter = await asyncio.to_thread(self._store.get, adapter_id)
            if adapter is not None:
                self._remember(adapter_id, adapter)
        return adapter

    async def _find_or_make(
        self, adapter_id: str, make: Callable[[], Awaitable[StoredAdapter]]
    ) -> tuple[StoredAdapter, bool]:
        adapter = await self._find(adapter_id)
        if adapter is not None:
            return adapter, False
        adapter = await make()
        async with self._lock:
            try:
                await asyncio.to_thread(self._store.put, adapter)
            except (OSError, StoreError) as error:
                log.exception("adapter %s could not be stored", adapter_id)
                raise StoreFailedError(
                    "the adapter could not be stored, so it is not acknowledged"
                ) from error
            self._remember(adapter_id, adapter)
        return adapter, True

    def _remember(self, adapter_id: str, adapter: StoredAdapter) -> None:
        if adapter_id in self._memory:
            return
        self._memory[adapter_id] = adapter
        self._count(_size_bytes(adapter))
        while self._used_bytes > self._memory_bytes:
            _, dropped = self._memory.popitem(last=False)
            self._count(-_size_bytes(dropped))
            self._metrics.evictions.inc()

    def _count(self, change_bytes: int) -> None:
        self._used_bytes += change_bytes
        self._metrics.memory_bytes.set(self._used_bytes)

    def _landed(self, adapter_id: str, flight: asyncio.Task[tuple[StoredAdapter, bool]]) -> None:
        del self._flights[adapter_id]
        if not flight.cancelled() and flight.exception() is not None:  # every waiter may have left
            log.warning("adapter %s was not made: %s", adapter_id, flight.exception())


def _unknown(adapter_id: str) -> UnknownAdapterError:
    return UnknownAdapterError(f"there is no adapter {adapter_id[:100]!r}", "adapter_id")


def _size_bytes(adapter: StoredAdapter) -> int:
    return adapter.posterior.values.nbytes
