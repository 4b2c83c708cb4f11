"""An engine from settings."""

from __future__ import annotations

from typing import Literal

from model_store.adapters import AdapterStore
from service.engine.engine import Engine
from service.executors.build import build_executor
from service.metrics import Metrics
from service.settings import Settings


def build_engine(
    settings: Settings, metrics: Metrics, executor: Literal["inline", "process"] = "inline"
) -> Engine:
    """The engine that serves what `settings` name; `executor` is the one to use where they leave it open."""
    store = AdapterStore(settings.adapters_dir)
    return Engine(settings, build_executor(settings, metrics, executor), store, metrics)
