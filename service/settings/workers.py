"""Settings of the workers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from service.settings.values import LONGEST_SECONDS


class WorkerSettings(BaseModel):
    """How work is divided among worker processes."""

    executor: Literal["inline", "process", "ray"] | None = Field(
        default=None,
        description="Where the model runs: `inline` in this process, `process` in worker "
        "processes, `ray` in actors of Ray, on one machine or many (extra `ray`); by default "
        "`process` for `abmll serve` and `inline` for the other commands.",
    )
    ray_address: str | None = Field(
        default=None,
        min_length=1,
        description="Address of the Ray cluster whose nodes run the workers: `auto`, `host:port` or "
        "`ray://host:port`; by default Ray is started on this machine.",
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Number of workers, each with the whole model. With the device `cuda`, each has a "
        "GPU of its own. In a Ray cluster with room for fewer, the others join when nodes do.",
    )
    adapt_share: float = Field(
        default=0.35,
        gt=0,
        lt=1,
        description="Fraction of a worker's time for adaptations while predictions wait too.",
    )
    unit_seconds: float = Field(
        default=0.12,
        gt=0,
        le=LONGEST_SECONDS,
        description="Target time of one unit, in seconds. A unit is a gradient step or a chunk of samples, "
        "or a part of one; between units a worker looks at what else waits.",
    )
    memory_bytes: int | None = Field(
        default=None,
        ge=1 << 20,
        description="Memory of each worker's device for adapters and activations, in bytes, without the base; by "
        "default most of the free memory of a GPU. On a CPU it is half of what the machine, or the container's limit, "
        "has left at the start, in equal parts for the workers.",
    )
    heartbeat_seconds: float = Field(
        default=1.0,
        gt=0,
        le=LONGEST_SECONDS,
        description="Seconds between a worker's heartbeats. A worker that misses ten is restarted.",
    )
    hang_seconds: float = Field(
        default=120.0,
        gt=0,
        le=LONGEST_SECONDS,
        description="Longest time of one unit of the usual size, in seconds; a larger one may take longer "
        "in proportion. A worker that takes longer is restarted.",
    )
    worker_memory_bytes: int | None = Field(
        default=None,
        ge=1 << 20,
        description="Most main memory of a worker process, in bytes. One that has more finishes its jobs and is "
        "started again; by default there is no limit.",
    )
    worker_max_requests: int | None = Field(
        default=None,
        ge=1,
        description="Jobs after which a worker finishes those that it has and is started again; by default never.",
    )
    self_check_seconds: float = Field(
        default=300.0,
        gt=0,
        le=LONGEST_SECONDS,
        description="Seconds between two checks of an idle worker by known answers. One with wrong answers, or "
        "three times in a row ten times as slow as the fastest, is started again.",
    )
    tenant_header: str | None = Field(
        default=None,
        min_length=1,
        description="Header in which a trusted gateway names the tenant. Tenants share the "
        "workers' time equally. This is for fairness only: they see each other's adapters, unlike "
        "tenants of `keys_file`.",
    )
