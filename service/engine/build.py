"""Builds an engine from settings."""

from __future__ import annotations

from functools import partial

from model_store.adapters.gate_journals import GateJournals
from model_store.adapters.id_keys import read_or_make_id_key
from model_store.adapters.names import NameStore
from model_store.adapters.store import AdapterStore
from service.engine.engine import Engine
from service.engine.tenants import TenantStores
from service.executors.contract import Executor
from service.gating.keeper import GateKeeper
from service.metrics import Metrics
from service.settings import Settings


def build_engine(settings: Settings, executor: Executor, metrics: Metrics) -> Engine:
    """Build the engine that sends its jobs to `executor`.

    Raises `StoreInUseError` where another process uses the data folder.
    """
    store = AdapterStore(settings.adapters_dir)  # first: it holds the lock of the data folder
    gates = GateKeeper(settings, GateJournals(settings.calibrations_dir), metrics)
    names = NameStore(settings.names_dir)
    others = partial(open_tenant, settings, metrics)
    return Engine(settings, executor, store, names, gates, metrics, others)


def open_tenant(settings: Settings, metrics: Metrics, tenant: str) -> TenantStores:
    """Open the stores of a tenant, in a folder of its own below the data folder.

    Raises as the stores, `StoreInUseError` and `UnusableFolderError` among others.
    """
    own = settings.of_tenant(tenant)
    adapters = AdapterStore(own.adapters_dir)
    gates = GateKeeper(own, GateJournals(own.calibrations_dir), metrics)
    return TenantStores(adapters, NameStore(own.names_dir), gates, read_or_make_id_key(own.data_dir))
