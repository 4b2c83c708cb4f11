"""What each tenant has: its stores on disk, and their owners in memory.

Tenants have nothing in common but the workers, the work that waits for them, and the memory for
adapters. So no call of one tenant
can find, join or list what is another's: it never reaches it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.engine.adapter_cache import AdapterCache
from service.engine.backlog import Backlog
from service.engine.flights import Flights
from service.engine.long_adaptations import LongAdaptations
from service.engine.names import Names
from service.engine.refining import Refining
from service.engine.registry import AdapterRegistry
from service.executors.contract import DEFAULT_TENANT, Executor
from service.gating.keeper import GateKeeper
from service.metrics import Metrics
from service.principals.quotas import Meter
from service.principals.records import TENANT
from service.settings import Settings

if TYPE_CHECKING:
    from abmll.assurance.diagnostics import Diagnosis
    from model_store.adapters.contract import Adapters
    from model_store.adapters.names import NameStore
    from model_store.adapters.statuses import StatusStore


@dataclass(frozen=True)
class TenantStores:
    """What one tenant has on disk. `id_key` keys the ids of its adapters; empty leaves them plain."""

    adapters: Adapters
    names: NameStore
    gates: GateKeeper
    statuses: StatusStore
    id_key: bytes = b""


@dataclass(frozen=True)
class Belongings:
    """Adapters, names, gates and work in the background of one tenant, and what it has used."""

    registry: AdapterRegistry
    names: Names
    gates: GateKeeper
    refining: Refining
    long: LongAdaptations
    diagnoses: Flights[Diagnosis]
    id_key: bytes
    meter: Meter

    async def delete_adapter(self, adapter_id: str) -> None:
        """Delete the adapter, and its calibration first, since that must not outlive it.

        Raises `UnknownAdapterError`, and `AdapterNamedError` where a name points to it.
        """

        async def first(adapter_id: str) -> None:
            await self.names.check_unnamed(adapter_id)
            await self.gates.forget(adapter_id)

        await self.registry.delete(adapter_id, first)

    @property
    def in_background(self) -> int:
        """Return the number of adapters that are made without a client that waits."""
        return len(self.refining) + len(self.long)

    @property
    def in_flight(self) -> int:
        """Return the number of adapters and diagnoses that are being made."""
        return self.registry.in_flight + len(self.diagnoses)


class Tenants:
    """Owns the belongings of all tenants, opened when a tenant first asks. Used from one event
    loop.
    """

    def __init__(
        self,
        own: TenantStores,
        open_stores: Callable[[str], TenantStores] | None,
        settings: Settings,
        executor: Executor,
        metrics: Metrics,
    ) -> None:
        """Own the stores of the default tenant, and open those of others with `open_stores`."""
        self._open_stores, self._settings = open_stores, settings
        self._executor, self._metrics = executor, metrics
        self._memory = AdapterCache(settings.adapter_memory_bytes, metrics)
        self._long_backlog = Backlog(
            settings.long_deadline_seconds * settings.workers,
            settings.workers,
            "long_deadline_seconds",
            metrics.waiting_work_seconds.labels("long").set,
        )
        self._lock = asyncio.Lock()  # held while a tenant is opened
        self._opened = {DEFAULT_TENANT: self._belongings(DEFAULT_TENANT, own)}

    async def of(self, tenant: str) -> Belongings:
        """Return the belongings of a tenant. Raises what opening its stores raises."""
        if tenant not in self._opened:
            async with self._lock:
                if tenant not in self._opened:
                    if self._open_stores is None:
                        raise LookupError("this engine has one tenant only")
                    stores = await asyncio.to_thread(self._open_stores, tenant)
                    self._opened[tenant] = self._belongings(tenant, stores)
        return self._opened[tenant]

    @property
    def default(self) -> Belongings:
        """Return the belongings of the default tenant."""
        return self._opened[DEFAULT_TENANT]

    def all(self) -> Collection[Belongings]:
        """Return the belongings of every tenant that has asked."""
        return list(self._opened.values())

    def on_disk(self) -> Collection[str]:
        """Return the tenants that have something on disk."""
        return [DEFAULT_TENANT, *(name for name in self._settings.tenants() if TENANT.fullmatch(name))]

    def _belongings(self, tenant: str, stores: TenantStores) -> Belongings:
        settings, executor, metrics = self._settings, self._executor, self._metrics
        grace = settings.cancel_grace_seconds
        registry = AdapterRegistry(stores.adapters, self._memory.of(tenant), grace)
        names = Names(stores.names, registry, settings.max_names)
        refining = Refining(registry, names, executor, metrics)
        return Belongings(
            registry,
            names,
            stores.gates,
            refining,
            LongAdaptations(
                stores.statuses,
                registry,
                refining,
                executor,
                metrics,
                settings.long_deadline_seconds,
                settings.status_seconds,
                self._long_backlog,
            ),
            Flights("diagnosis", grace),
            stores.id_key,
            Meter(),
        )
