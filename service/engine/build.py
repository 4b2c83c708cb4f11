"""An engine from settings."""

from __future__ import annotations

from model_store.adapters.store import AdapterStore
from service.engine.engine import Engine
from service.executors.contract import Executor
from service.metrics import Metrics
from service.settings import Settings


def build_engine(settings: Settings, executor: Executor, metrics: Metrics) -> Engine:
    """The engine that serves what `settings` name on `executor`. Raises `StoreInUseError` where another owns the data folder."""
    return Engine(settings, executor, AdapterStore(settings.adapters_dir), metrics)
