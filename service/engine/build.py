"""Builds an engine from settings."""

from __future__ import annotations

from functools import partial

from model_store.adapters.statuses import StatusStore
from service.engine.engine import Engine
from service.engine.stores import id_key_of, stores_of
from service.engine.tenants import TenantStores
from service.executors.contract import Executor
from service.gating.keeper import GateKeeper
from service.metrics import Metrics
from service.settings import Settings


def build_engine(settings: Settings, executor: Executor, metrics: Metrics) -> Engine:
    """Build the engine that sends its jobs to `executor`.

    Raises `StoreInUseError` where another process uses the data folder, and as `open_stores`.
    """
    metrics.gateway.queue_limit = settings.queue_limit
    stores = stores_of(settings)
    gates = GateKeeper(settings, stores.calibrations, metrics, stores.fresh_seconds)
    others = partial(open_tenant, settings, metrics)
    return Engine(settings, executor, stores.adapters, stores.names, gates, metrics, others)


def open_tenant(settings: Settings, metrics: Metrics, tenant: str) -> TenantStores:
    """Open the stores of a tenant, in a place of its own below the data folder or the shared store.

    Raises as `open_stores` and `id_key_of`.
    """
    own = settings.of_tenant(tenant)
    stores = stores_of(own)
    gates = GateKeeper(own, stores.calibrations, metrics, stores.fresh_seconds)
    statuses = StatusStore(own.statuses_dir)
    return TenantStores(stores.adapters, stores.names, gates, statuses, id_key_of(stores, own))
