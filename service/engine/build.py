"""Builds an engine from settings."""

from __future__ import annotations

from service.engine.engine import Engine
from service.engine.stores import stores_of
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
    return Engine(settings, executor, stores.adapters, stores.names, gates, metrics)
