"""An engine in this process, for the time of one command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from model_store.errors import StoreInUseError
from service.settings import Settings

if TYPE_CHECKING:
    from service.engine.engine import Engine

T = TypeVar("T")

MODEL_SETTINGS = (
    "model", "posterior", "also_posteriors", "readout_scale", "quantisation", "dtype", "device", "threads",
    "data_dir", "store_url", "cache_dir",
)  # fmt: skip
"""The settings that a command with its own engine takes as options."""


def without_doing(
    settings: Settings, work: Callable[[Engine], Coroutine[Any, Any, T]], *, stored: str | None
) -> T:
    """Return the result of `work`, a dry run, as `with_engine`.

    Where another process owns the data folder, it runs in a folder of its own, with a copy of the
    adapter that it needs: `stored`, an id or a name.
    """
    from service.cli.stored_copy import copy_stored  # noqa: PLC0415

    with suppress(StoreInUseError):
        return with_engine(settings, work)
    with TemporaryDirectory() as folder:
        own = settings.model_copy(update={"data_dir": Path(folder)})
        if stored is not None and settings.store_url is None:
            copy_stored(settings, stored, own)
        return with_engine(own, work)


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
