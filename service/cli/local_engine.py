"""An engine in this process, for the time of one command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from model_store.errors import StoreInUseError
from service.settings import Settings

if TYPE_CHECKING:
    from service.engine.engine import Engine

T = TypeVar("T")

MODEL_SETTINGS = (
    "model", "posterior", "also_posteriors", "readout_scale", "quantisation", "device", "threads",
    "data_dir", "store_url", "cache_dir",
)  # fmt: skip
"""The settings that a command with its own engine takes as options."""


def without_doing(settings: Settings, work: Callable[[Engine], Coroutine[Any, Any, T]], *, stored: bool) -> T:
    """Return the result of `work`, a dry run, as `with_engine`.

    Beside a server it has an empty data folder of its own, unless it needs what is `stored`. Raises
    `StoreInUseError` then.
    """
    try:
        return with_engine(settings, work)
    except StoreInUseError:
        if stored:
            raise
    with TemporaryDirectory() as folder:
        return with_engine(settings.model_copy(update={"data_dir": Path(folder)}), work)


def with_engine(settings: Settings, work: Callable[[Engine], Coroutine[Any, Any, T]]) -> T:
    """Start an engine, run `work` on it, close it, and return the result of `work`.

    Raises what loading the model raises (`StoreError`, `AbmllError`) and what `work` raises.
    """
    from service.engine.build import build_engine  # noqa: PLC0415
    from service.executors.build import build_executor  # noqa: PLC0415
    from service.metrics import Metrics  # noqa: PLC0415

    async def run() -> T:
        metrics = Metrics()
        engine = build_engine(settings, build_executor(settings, metrics, "inline"), metrics)
        try:
            await engine.start()
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(run())
