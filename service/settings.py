"""Every setting of the service, in one frozen model. Precedence: command line, then `ABMLL_*` environment, then default."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

import platformdirs
from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from model_store.pretrained.catalogue import DEFAULT_BASE

ENV_PREFIX = "ABMLL_"
UNTRAINED = "untrained"


class SettingsError(ValueError):
    """A setting that is unknown or does not hold; the message names it."""


class Settings(BaseSettings):
    """Where the service listens, what it serves, and what it refuses."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")

    model: str = Field(default=DEFAULT_BASE, description="Name of the base model in the catalogue.")
    posterior: str | None = Field(
        default=None,
        description="Id or folder of the global posterior, or `untrained`; by default the one shipped for the model.",
    )
    quantisation: Literal["nf4", "int8", "none"] | None = Field(
        default=None, description="Quantisation of the base; by default the one its catalogue entry names."
    )
    nli_model: str | None = Field(
        default=None,
        description="Folder or hub id of a classifier of entailment, which then tells the free-text answers that mean the same; "
        "by default answers of the same words do.",
    )
    device: str = Field(
        default="cpu", description="Torch device that runs the model, such as `cpu` or `cuda:0`."
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of the model; by default torch's choice."
    )

    compile: bool = Field(
        default=False,
        description="Compile the layers below the adapted ones with `torch.compile`; takes a compiler, and time at the start.",
    )

    executor: Literal["inline", "process"] | None = Field(
        default=None,
        description="Where the model runs: in this process, or in worker processes; by default in processes for `abmll serve`, "
        "inline for the other commands.",
    )
    workers: int = Field(
        default=1,
        ge=1,
        description="Worker processes, each with the whole model; with the device `cuda`, one a GPU.",
    )
    adapt_share: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="Share of a worker's time for adaptations, while predictions wait too.",
    )
    unit_seconds: float = Field(
        default=0.5,
        gt=0,
        description="About how long a worker works before it looks at what else waits: one gradient step or chunk of samples.",
    )
    memory_bytes: int | None = Field(
        default=None,
        ge=1 << 20,
        description="Memory of each worker's device for adapters and activations, beside the base; by default most of what is "
        "free on a GPU, half of it on a CPU.",
    )
    heartbeat_seconds: float = Field(
        default=1.0,
        gt=0,
        description="Time between a worker's heartbeats; it is restarted when ten are missed.",
    )
    hang_seconds: float = Field(
        default=120.0,
        gt=0,
        description="Longest time one gradient step or chunk of samples may take; beyond it the worker is restarted.",
    )
    tenant_header: str | None = Field(
        default=None,
        min_length=1,
        description="Header in which a trusted gateway names the tenant; tenants share the workers' time equally. "
        "For fairness only: tenants see each other's adapters.",
    )

    data_dir: Path = Field(
        default=Path(platformdirs.user_data_dir("abmll")),
        description="Folder in which acknowledged adapters are kept.",
    )
    cache_dir: Path | None = Field(
        default=None,
        description="Folder for downloaded and quantised bases; by default the user's cache folder.",
    )
    adapter_memory_bytes: int = Field(
        default=1 << 30,
        ge=0,
        description="Adapters kept in memory, in bytes; the others are read from `data_dir`.",
    )

    max_body_bytes: int = Field(default=1 << 20, ge=1024, description="Largest request body; beyond it 413.")
    max_support: int = Field(default=256, ge=1, description="Most support examples of one adapter.")
    max_inputs: int = Field(default=256, ge=1, description="Most inputs of one predict request.")
    max_options: int = Field(default=128, ge=2, description="Most options of one example or input.")
    max_text_chars: int = Field(default=32_768, ge=1, description="Longest single text, in characters.")
    max_samples: int = Field(
        default=64,
        ge=16,
        le=64,
        description="Most posterior samples of one prediction; at least the requests' default.",
    )
    max_folds: int = Field(default=32, ge=2, description="Most folds of one diagnosis.")
    max_steps: int = Field(default=64, ge=1, description="Most gradient steps of one adaptation.")
    max_new_tokens: int = Field(
        default=256, ge=32, description="Most tokens of one free-text answer; at least the requests' default."
    )

    max_calibration: int = Field(
        default=10_000, ge=1, description="Most labelled outcomes that one adapter's calibration keeps."
    )
    max_logged: int = Field(
        default=10_000,
        ge=1,
        description="Predictions of an adapter that are remembered for feedback; then those without a label are forgotten.",
    )
    feedback_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Random share of logged predictions whose labels are asked for: only these recalibrate the gate.",
    )
    alarm_delta: float = Field(
        default=0.01, gt=0, lt=1, description="False-alarm probability of each drift alarm of a calibration."
    )

    queue_limit: int = Field(
        default=64,
        ge=1,
        description="Requests that may wait or run at a time; beyond it 429 with Retry-After.",
    )
    deadline_seconds: float = Field(
        default=300.0,
        gt=0,
        description="Longest time a request may take; beyond it 504, and a retry joins its adaptation.",
    )
    cancel_grace_seconds: float = Field(
        default=60.0,
        ge=0,
        description="Time that an adaptation goes on when all who asked for it ran out of time, for a retry to join it.",
    )
    drain_seconds: float = Field(
        default=45.0, ge=0, description="Time that requests in flight have to finish after the first SIGTERM."
    )

    @model_validator(mode="after")
    def _one_device_a_worker(self) -> Self:
        if self.workers > 1 and self.executor == "inline":
            raise ValueError("several workers need the executor `process`")
        if self.workers > 1 and ":" in self.device:
            raise ValueError(f"{self.workers} workers need the device `cuda` or `cpu`, not one by its number")
        return self

    @property
    def calibrations_dir(self) -> Path:
        """Root of the calibrations' journals."""
        return self.data_dir / "calibrations"

    @property
    def adapters_dir(self) -> Path:
        """Root of the adapter store."""
        return self.data_dir / "adapters"


def load_settings(**given: Any) -> Settings:
    """Settings from `given` (the command line; None means not given), the environment and the defaults.

    Raises `SettingsError` naming what is wrong, including an `ABMLL_` variable that is no setting.
    """
    known = {f"{ENV_PREFIX}{name}".upper() for name in Settings.model_fields}
    unknown = sorted(k for k in os.environ if k.upper().startswith(ENV_PREFIX) and k.upper() not in known)
    if unknown:
        raise SettingsError(f"unknown setting in the environment: {unknown[0]}")
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"setting {'.'.join(map(str, first['loc'])) or 'workers'}: {message}") from error
