"""Builds an engine from settings."""

from __future__ import annotations

from model_store.adapters.gate_journals import GateJournals
from model_store.adapters.names import NameStore
from model_store.adapters.store import AdapterStore
from service.engine.engine import Engine
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
    return Engine(settings, executor, store, NameStore(settings.names_dir), gates, metrics)
