"""An engine from settings. Imports no model code itself: that happens on the thread that will own the model."""

from __future__ import annotations

from model_store.adapters import AdapterStore
from service.engine.engine import Engine
from service.executors.contract import Worker
from service.executors.inline import InlineExecutor
from service.metrics import Metrics
from service.settings import Settings


def build_engine(settings: Settings, metrics: Metrics) -> Engine:
    """The engine that serves what `settings` name, in this process."""

    def load() -> Worker:
        from service.executors.worker import load_worker  # noqa: PLC0415 - seconds of imports, off the event loop

        return load_worker(settings)

    return Engine(settings, InlineExecutor(load), AdapterStore(settings.adapters_dir), metrics)
