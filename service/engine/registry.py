"""The adapters of a server: memory in front of the disk, and adaptations in flight."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from model_store.errors import StoreError
from service.engine.adapter_cache import AdapterCache
from service.engine.flights import Flights
from service.engine.requests import CacheOutcome
from service.errors import UnknownAdapterError, store_failure
from service.principals.quotas import check_room
from service.principals.records import UNLIMITED

if TYPE_CHECKING:
    from abmll.assurance.diagnostics import Diagnosis
    from model_store.adapters.contract import Adapters
    from model_store.adapters.manifest import AdapterManifest
    from model_store.adapters.store import StoredAdapter

log = logging.getLogger(__name__)
LONGEST_WAIT_SECONDS = 60
"""Most seconds after which a caller that wants an adapter which is being made is asked to come
again.
"""
_Made: TypeAlias = "tuple[StoredAdapter, bool]"  # True where the adapter was made, not found


class AdapterRegistry:
    """Owns the adapters of one server.

    Used from one event loop; the disk is read and written in threads. An adapter is on disk before
    a request is answered with it, so memory is only a cache. One id is adapted at most once at a
    time, and equal requests wait for it together; `Flights` says when that is cancelled.
    """

    def __init__(self, store: Adapters, memory: AdapterCache, grace_seconds: float) -> None:
        self._store, self._memory = store, memory
        self._flights: Flights[_Made] = Flights("adapter", grace_seconds)
        self.limits = UNLIMITED
        """What the tenant may have, as its last request said."""
        self._making, self._admitting = 0, asyncio.Lock()
        self._used: set[str] = set()
        """Adapters that were found since their use was last written down."""
        self._due: dict[str, float] = {}
        """When adapters in flight are expected, in the event loop's time, where that is known."""
        # Held while disk and memory change together, so that a slow read does not put a deleted
        # adapter back.
        self._lock = asyncio.Lock()

    @property
    def in_flight(self) -> int:
        """Return the number of adapters that are being made, or read for the first time."""
        return len(self._flights)

    @property
    def waiters(self) -> int:
        """Return the number of requests that wait for these adapters."""
        return self._flights.waiters

    def is_being_made(self, adapter_id: str) -> bool:
        """Return whether the adapter is being made, or read for the first time."""
        return adapter_id in self._flights

    def seconds_until(self, adapter_id: str) -> int:
        """Return after how long to ask again for an adapter that is being made; from 1 to a minute."""
        left = self._due.get(adapter_id, 0.0) - asyncio.get_running_loop().time()
        return min(LONGEST_WAIT_SECONDS, max(1, math.ceil(left)))

    async def knows(self, adapter_id: str) -> bool:
        """Return whether there is an adapter of this id, or one is being made."""
        return adapter_id in self._flights or await self.has(adapter_id)

    async def has(self, adapter_id: str) -> bool:
        """Return whether there is an adapter of this id."""
        return await self._find(adapter_id) is not None

    async def get(self, adapter_id: str) -> StoredAdapter:
        """Return the adapter of this id.

        Raises `UnknownAdapterError`, which says so where the adapter is being made.
        """
        adapter = await self._find(adapter_id)
        if adapter is None:
            raise self._unknown(adapter_id)
        return adapter

    async def manifests(self, adapter_ids: Iterable[str]) -> Mapping[str, AdapterManifest]:
        """Return the manifests of those of these adapters that are there. Memory stays as it is."""

        def read() -> Mapping[str, AdapterManifest]:
            found = ((id, self._store.manifest(id)) for id in set(adapter_ids))
            return {id: manifest for id, manifest in found if manifest is not None}

        return await asyncio.to_thread(read)

    async def obtain(
        self,
        adapter_id: str,
        make: Callable[[], Awaitable[StoredAdapter]],
        is_late: Callable[[], bool],
        expected_seconds: float | None = None,
    ) -> tuple[StoredAdapter, CacheOutcome]:
        """Return the adapter of this id, made with `make` if there is none.

        `is_late` is called if the caller is cancelled, and says whether its deadline has passed.
        `expected_seconds` is how long `make` takes, about. Raises `StoreFailedError`, and what
        `make` raises.
        """
        if expected_seconds is not None:
            self._due[adapter_id] = asyncio.get_running_loop().time() + expected_seconds
        try:
            (adapter, made), joined = await self._flights.join(
                adapter_id, lambda: self._find_or_make(adapter_id, make), is_late
            )
        finally:
            if expected_seconds is not None:
                self._due.pop(adapter_id, None)
        if not made:
            return adapter, CacheOutcome.HIT
        return adapter, CacheOutcome.JOINED if joined else CacheOutcome.MISS

    @asynccontextmanager
    async def lease(self, adapter: StoredAdapter) -> AsyncIterator[None]:
        """Hold the adapter in memory until the context ends, unless it is deleted."""
        adapter_id = adapter.manifest.id
        with self._memory.lease(adapter_id):
            if self._memory.get(adapter_id) is None:  # evicted or deleted since it was found
                async with self._lock:
                    if await asyncio.to_thread(self._store.has, adapter_id):
                        self._memory.put(adapter)
            yield

    async def pin(self, adapter_id: str) -> None:
        """Hold the adapter in memory.

        Raises `UnknownAdapterError`, and `LimitExceededError` where it does not fit.
        """
        self._memory.pin(await self.get(adapter_id))

    async def unpin(self, adapter_id: str) -> None:
        """Allow the adapter to be dropped from memory again. Raises `UnknownAdapterError`."""
        await self.get(adapter_id)
        self._memory.unpin(adapter_id)

    async def delete(self, adapter_id: str, first: Callable[[str], Awaitable[object]]) -> None:
        """Delete the adapter, on disk too, after `first` has removed what must not outlive it.

        Raises `UnknownAdapterError`.
        """
        async with self._lock:
            await first(adapter_id)
            deleted = await asyncio.to_thread(self._store.delete, adapter_id)
            self._memory.drop(adapter_id)
        if not deleted:
            raise self._unknown(adapter_id)

    @asynccontextmanager
    async def existing(self, adapter_id: str) -> AsyncIterator[None]:
        """Keep the adapter from being deleted while the context lasts. Raises
        `UnknownAdapterError`.
        """
        async with self._lock:
            if not await asyncio.to_thread(self._store.has, adapter_id):
                raise self._unknown(adapter_id)
            yield

    async def note_uses(self) -> None:
        """Write down on disk which adapters have been used since the last call."""
        used, self._used = self._used, set()

        def touch() -> None:
            for id in used:
                self._store.touch(id)

        try:
            await asyncio.to_thread(touch)
        except BaseException:  # else they would expire as if nobody had used them
            self._used |= used
            raise

    async def unused_since(self, moment: float) -> list[str]:
        """Return the ids of adapters that were last used before this time, in seconds of the epoch."""
        found = await asyncio.to_thread(self._store.last_used_before, moment)
        return [id for id in found if id not in self._used and id not in self._flights]

    async def stored(self) -> tuple[int, int]:
        """Return how many adapters are stored, and their bytes."""
        return await asyncio.to_thread(self._store.usage)

    async def put_diagnosis(self, adapter_id: str, diagnosis: Diagnosis) -> None:
        """Store the adapter's diagnosis with it, on disk too.

        Raises `StoreFailedError`, and `UnknownAdapterError` where it was deleted meanwhile.
        """
        async with self._lock:
            try:
                stored = await asyncio.to_thread(self._store.put_diagnosis, adapter_id, diagnosis)
            except (OSError, StoreError) as error:
                log.exception("the diagnosis of adapter %s could not be stored", adapter_id)
                raise store_failure(error, "the diagnosis could not be stored") from error
            held = self._memory.get(adapter_id)
            if held is not None:
                self._memory.replace(replace(held, diagnosis=diagnosis))
        if not stored:
            raise self._unknown(adapter_id)

    async def page(self, after: str | None, limit: int) -> tuple[list[AdapterManifest], bool]:
        """Return the manifests of at most `limit` adapters, and whether there are more.

        They are ordered by id and come after the id `after`.
        """
        found = await asyncio.to_thread(self._store.list, after, limit + 1)
        return found[:limit], len(found) > limit

    async def settle(self) -> None:
        """Wait until all adaptations in flight have ended."""
        await self._flights.settle()

    async def close(self) -> None:
        """Cancel the adaptations in flight, and release the store for other processes."""
        await self._flights.close()
        await asyncio.to_thread(self._store.close)

    async def _find(self, adapter_id: str) -> StoredAdapter | None:
        adapter = self._memory.get(adapter_id)
        if adapter is not None and await self._is_there(adapter_id):
            self._used.add(adapter_id)
            return adapter
        async with self._lock:
            adapter = self._memory.get(adapter_id)  # another reader may have put it there meanwhile
            if adapter is None:
                adapter = await asyncio.to_thread(self._store.get, adapter_id)
                if adapter is not None:
                    self._memory.put(adapter)
        if adapter is not None:
            self._used.add(adapter_id)
        return adapter

    async def _is_there(self, adapter_id: str) -> bool:
        """Return whether the store still has an adapter in memory; drop it from there if not."""
        if self._store.is_current(adapter_id) or await asyncio.to_thread(self._store.has, adapter_id):
            return True
        self._memory.drop(adapter_id)  # another server has deleted it
        return False

    async def _find_or_make(self, adapter_id: str, make: Callable[[], Awaitable[StoredAdapter]]) -> _Made:
        adapter = await self._find(adapter_id)
        if adapter is not None:
            return adapter, False
        await self._take_room()
        try:
            adapter = await make()
            async with self._lock:
                try:
                    await asyncio.to_thread(self._store.put, adapter)
                except (OSError, StoreError) as error:
                    log.exception("adapter %s could not be stored", adapter_id)
                    raise store_failure(
                        error, "the adapter could not be stored, so it is not acknowledged"
                    ) from error
                self._memory.put(adapter)
        finally:
            self._making -= 1
        return adapter, True

    async def _take_room(self) -> None:
        """Count one more adapter in the making. Raises `QuotaExceededError` where that is too many.

        Requests that come at once were each alone when they were admitted.
        """
        async with self._admitting:
            if self.limits != UNLIMITED:
                making = self._making  # before: what is stored during the look may count twice, but not never
                adapters, stored_bytes = await self.stored()
                check_room(self.limits, adapters + making, stored_bytes)
            self._making += 1

    def _unknown(self, adapter_id: str) -> UnknownAdapterError:
        """Return the error for an adapter that is not there, and may be being made."""
        if adapter_id not in self._flights:
            return UnknownAdapterError(f"there is no adapter {adapter_id[:100]!r}", "adapter_id")
        seconds = self.seconds_until(adapter_id)
        message = f"adapter {adapter_id} is being made and not there yet: ask again in {seconds} s"
        return UnknownAdapterError(message, "adapter_id", seconds)
