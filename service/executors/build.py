"""Builds an executor from settings. Only the worker that owns the model imports model code."""

from __future__ import annotations

import os
from functools import partial
from typing import Literal

from service.executors.contract import Executor, Worker
from service.executors.inline import inline_executor
from service.executors.process import process_executor
from service.executors.self_check import SelfCheck
from service.executors.supervision import Supervision
from service.logs import set_up_logs
from service.metrics import Metrics
from service.settings import Settings
from service.settings.values import SettingsError

_ROOM_FACTOR = 1.5
"""What a worker may take while it loads, by what it has later."""


def build_executor(
    settings: Settings, metrics: Metrics, usual: Literal["inline", "process"], *, early: bool = False
) -> Executor:
    """Build the executor that `settings` name, or the `usual` one where they name none.

    `early` is passed to the executor. Raises `SettingsError` where the package `ray` is missing.
    """
    supervision = Supervision(
        settings.heartbeat_seconds,
        settings.hang_seconds,
        most_memory_bytes=settings.worker_memory_bytes,
        most_jobs=settings.worker_max_requests,
        leave_seconds=settings.drain_seconds,
        check_seconds=settings.self_check_seconds,
    )
    if settings.executor == "ray":
        return _build_ray_executor(settings, metrics, supervision, early=early)
    loads = [partial(load_model_worker, own) for own in settings_by_worker(settings)]
    if (settings.executor or usual) == "inline":
        return inline_executor(loads[0], metrics, adapt_share=settings.adapt_share)
    return process_executor(
        loads,
        metrics,
        adapt_share=settings.adapt_share,
        supervision=supervision,
        check=SelfCheck(),
        early=early,
        set_up_logs=partial(set_up_logs, settings.log_format, settings.log_level),
        # How much of a GPU is free is not known in this process.
        has_room=_fits_beside if settings.device == "cpu" else lambda _: False,
    )


def _fits_beside(memory_bytes: int) -> bool:
    """Return whether the main memory has room for another worker of this size, which is known."""
    from model_store.process_memory import available_bytes  # noqa: PLC0415 - imports torch

    return 0 < _ROOM_FACTOR * memory_bytes < available_bytes()


def _build_ray_executor(
    settings: Settings, metrics: Metrics, supervision: Supervision, *, early: bool
) -> Executor:
    try:
        from service.executors.ray import RayRoom, ray_executor  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise SettingsError(
            "the executor `ray` needs the package ray: pip install 'abmll-serve[ray]'"
        ) from error
    if settings.device == "cpu":
        # Nodes of a cluster may differ from this machine, so its cores say nothing about theirs.
        here = settings.ray_address is None
        threads = settings.threads or (max(1, _cores() // settings.workers) if here else 1)
        own, room = settings.model_copy(update={"threads": threads}), RayRoom(cpus=threads)
    else:
        own, room = settings, RayRoom(cpus=1, gpus=1)
    return ray_executor(
        [partial(load_model_worker, own)] * settings.workers,
        metrics,
        address=settings.ray_address,
        room=room,
        adapt_share=settings.adapt_share,
        supervision=supervision,
        check=SelfCheck(),
        early=early,
        set_up_logs=partial(set_up_logs, settings.log_format, settings.log_level),
    )


def load_model_worker(settings: Settings) -> Worker:
    """Load a worker. Raises what `service.executors.loading.load_worker` raises."""
    from service.executors.loading import load_worker  # noqa: PLC0415 - seconds of imports

    return load_worker(settings)


def settings_by_worker(settings: Settings) -> list[Settings]:
    """Return the settings of each worker: its own GPU, or an equal part of the CPU's cores."""
    count = settings.workers
    if count == 1:
        return [settings]
    if settings.device == "cpu":
        threads = settings.threads or max(1, _cores() // count)
        return [settings.model_copy(update={"threads": threads})] * count
    return [settings.model_copy(update={"device": f"{settings.device}:{i}"}) for i in range(count)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
