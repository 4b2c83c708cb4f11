"""Every setting of the service, in one frozen model.

The command line wins over the environment (`ABMLL_*`), which wins over a configuration file, which
wins over the default.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import platformdirs
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from model_store.objects.opening import check_url
from model_store.pretrained.catalogue import DEFAULT_BASE

ENV_PREFIX = "ABMLL_"
UNTRAINED = "untrained"
LONGEST_SECONDS = 30 * 24 * 3600.0
"""Longest time that a setting may name; timers of the system take no time of any length."""


class SettingsError(ValueError):
    """A setting that is unknown or does not hold; the message names it."""


class NetworkSettings(BaseModel):
    """Where the server listens."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    root_path: str = Field(
        default="",
        description="Path below which a proxy shows the server, such as `/abmll`; the proxy may remove it "
        "or leave it.",
    )
    cors_origins: str | None = Field(
        default=None,
        description="Origins of the web pages that may call the server from a browser, separated by "
        "commas, such as `https://app.example.org`; `*` means all pages. By default none may.",
    )
    playground: bool = Field(
        default=True, description="Show the page `/playground`, on which anyone who reaches it can try cases."
    )
    keep_alive_seconds: int = Field(
        default=75,
        ge=1,
        le=24 * 3600,
        description="Seconds after which an idle connection is closed; more than a proxy in front "
        "keeps its idle connections.",
    )

    @field_validator("root_path")
    @classmethod
    def _path(cls, path: str) -> str:
        if path.strip("/") and not re.fullmatch(r"(/[\w.~-]+)+/?", path):
            raise ValueError(f"{path!r} is not a path such as /abmll")
        return path.rstrip("/")

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: str | None) -> str | None:
        for origin in _split(origins):
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s*]+", origin):
                raise ValueError(
                    f"{origin!r} is not an origin, which has a scheme and a host, and no path: "
                    "https://app.example.org"
                )
        return origins

    @property
    def allowed_origins(self) -> list[str]:
        """The origins of `cors_origins`, one by one."""
        return _split(self.cors_origins)


def _split(texts: str | None) -> list[str]:
    return [text.strip() for text in (texts or "").split(",") if text.strip()]


class LogSettings(BaseModel):
    """What the log has, and how it is written."""

    log_format: Literal["text", "json"] = Field(
        default="text",
        description="Lines of the log: `text`, or `json`, an object a line with the request's id, tenant and "
        "adapter. Neither has a text of a request.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level of a line that is logged."
    )


class AccessSettings(BaseModel):
    """Who may use the server."""

    keys_file: Path | None = Field(
        default=None,
        description="File of the keys that requests need, made by `abmll keys add`. Changes are seen "
        "within a second. Without it, anyone who reaches the server may do everything.",
    )
    insecure: bool = Field(
        default=False,
        description="Listen on other addresses than this machine's own without keys: for a network in "
        "which everyone may use the server, or a gateway in front of it that checks who asks.",
    )
    open_metrics: bool = Field(
        default=False,
        description="Show `/metrics` without a key. Otherwise it needs one with the scope `admin`, if "
        "there are keys.",
    )
    audit_log: Path | None = Field(
        default=None,
        description="File to which a line of JSON is appended for each adapter, name and gate that is made, "
        "changed or deleted, with the tenant and the key. It has no text of a user.",
    )
    ssl_certfile: Path | None = Field(
        default=None, description="Certificate, in PEM, with which the server itself speaks HTTPS."
    )
    ssl_keyfile: Path | None = Field(
        default=None, description="Private key of the certificate, in PEM, if it is in a file of its own."
    )

    @model_validator(mode="after")
    def _key_of_a_certificate(self) -> Self:
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs ssl_certfile, the certificate that the key is of")
        return self


class ModelSettings(BaseModel):
    """Which model answers, and on which device."""

    @property
    def aliases(self) -> list[str]:
        """The names of `model_aliases`, one by one."""
        return _split(self.model_aliases)

    @property
    def other_posteriors(self) -> list[str]:
        """The posteriors of `also_posteriors`, one by one."""
        return _split(self.also_posteriors)

    model: str = Field(default=DEFAULT_BASE, description="Name of the base model in the catalogue.")
    model_aliases: str | None = Field(
        default=None,
        description="Other names of the base model, such as the one that a client always sends; "
        "several are separated by commas.",
    )
    posterior: str | None = Field(
        default=None,
        description="Id or folder of the global posterior, or `untrained`; by default the "
        "posterior in the package for this base model.",
    )
    also_posteriors: str | None = Field(
        default=None,
        description="Ids or folders of other global posteriors of the same base, separated by commas: adapters "
        "that were made with them are answered too. New adapters are made with `posterior`.",
    )
    quantisation: Literal["nf4", "int8", "none"] | None = Field(
        default=None, description="Quantisation of the base model; by default that of its catalogue entry."
    )
    readout_scale: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="Scale of the noise where samples differ in the readout alone, the last linear layer: many "
        "samples then cost little more than the mean. By default samples differ as the posterior says.",
    )
    nli_model: str | None = Field(
        default=None,
        description="Folder or hub id of an entailment classifier, which decides whether free-text "
        "answers mean the same; by default answers mean the same if they have the same "
        "words.",
    )
    device: str = Field(
        default="cpu", description="Device that runs the model: `cpu`, `cuda`, or one GPU such as `cuda:0`."
    )
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads of the model; by default torch's choice."
    )
    compile: bool = Field(
        default=False,
        description="Compile the layers below the adapted ones with `torch.compile`. Needs a "
        "compiler, and makes the start slower.",
    )


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
        description="Memory of each worker's device for adapters and activations, in bytes, "
        "without the base; by default most of the free memory of a GPU, or half of it "
        "on a CPU.",
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


class StoreSettings(BaseModel):
    """Where adapters and base models are stored."""

    data_dir: Path = Field(
        default=Path(platformdirs.user_data_dir("abmll")),
        description="Folder in which adapters, their names and calibrations are stored.",
    )
    cache_dir: Path | None = Field(
        default=None,
        description="Folder for downloaded and quantised bases; by default the user's cache folder.",
    )
    store_support: Literal["text", "digest"] = Field(
        default="text",
        description="What is stored of an adapter's examples: `text`, or `digest`, the SHA-256 of each text "
        "beside options and questions. Adapters without texts cannot be diagnosed.",
    )
    ttl_seconds: float | None = Field(
        default=None,
        gt=0,
        description="Seconds after which an adapter that nobody has used is deleted, with its texts and "
        "calibrations, unless a name points to it. By default adapters stay until they are deleted.",
    )
    adapter_memory_bytes: int = Field(
        default=1 << 30,
        ge=0,
        description="Memory for adapters, in bytes. The others are read from `data_dir` when needed.",
    )


class SharedStoreSettings(BaseModel):
    """Where several servers store together; without an address, each stores in its `data_dir`."""

    store_url: str | None = Field(
        default=None,
        description="Address of a store that several servers share: `s3://bucket/prefix` (needs the extra s3), or "
        "`file:///folder`; by default each server stores in its `data_dir`. Keys come from the environment.",
    )
    store_timeout_seconds: float = Field(
        default=10.0,
        gt=0,
        le=600,
        description="Longest time of one call of the shared store, its retries included, in seconds; then a request "
        "gets 503.",
    )
    store_fresh_seconds: float = Field(
        default=1.0,
        ge=0,
        le=3600,
        description="Seconds for which what was read of the shared store counts as what it is: how long another "
        "server's new version of a name, or deletion, may not be seen here.",
    )
    store_cache_bytes: int = Field(
        default=1 << 34,
        ge=0,
        description="Disk below `data_dir` for adapters of the shared store, in bytes.",
    )

    @field_validator("store_url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        return url if url is None else check_url(url)


class LimitSettings(BaseModel):
    """How large a request may be."""

    max_body_bytes: int = Field(
        default=1 << 20, ge=1024, description="Largest request body, in bytes; a larger one gets 413."
    )
    body_seconds: float = Field(
        default=60.0,
        gt=0,
        le=24 * 3600,
        description="Longest time in which a request's body arrives, in seconds, and before it its head. "
        "A slower body gets 408, and its connection is closed.",
    )
    # Time of one thread and memory beside the model, with smollm2-135m-instruct on a CPU: a fit to
    # 16, 256, 500 examples of 8 options takes 3, 6, 9 s and 0.25 GB; to 150 examples of 150
    # options, 46 s and 2.4 GB. An input takes 0.6, 4, 5, 10 s and 0.03, 0.7, 0.8, 1.5 GB with 8,
    # 128, 150, 256 options.
    max_support: int = Field(
        default=256, ge=1, description="Most support examples of one adapter. More of them take time."
    )
    max_inputs: int = Field(default=256, ge=1, description="Most inputs of one predict request.")
    max_questions: int = Field(default=400, ge=1, description="Most questions about one input.")
    max_options: int = Field(
        default=256,
        ge=2,
        description="Most options of one example or input. Time and memory grow with them: 128 short ones "
        "need about 1 GB for an input, and 2 GB for a fit.",
    )
    max_text_chars: int = Field(default=32_768, ge=1, description="Longest single text, in characters.")
    max_samples: int = Field(
        default=64,
        ge=16,
        le=64,
        description="Most posterior samples of one prediction; at least the default of a request.",
    )
    max_folds: int = Field(default=32, ge=2, description="Most folds of one diagnosis.")
    max_steps: int = Field(default=64, ge=1, description="Most gradient steps of one adaptation.")
    max_new_tokens: int = Field(
        default=256,
        ge=32,
        description="Most tokens of one free-text answer; at least the default of a request.",
    )
    max_names: int = Field(
        default=10_000,
        ge=1,
        description="Most names of adapters, deleted ones included: the numbers of their versions do not come again.",
    )


class GateSettings(BaseModel):
    """How gates are certified, and how feedback renews them."""

    max_calibration: int = Field(
        default=10_000, ge=1, description="Most labelled outcomes of one adapter's calibration."
    )
    max_logged: int = Field(
        default=10_000,
        ge=1,
        description="Most predictions of an adapter that are stored for feedback. Beyond it the "
        "oldest are deleted, and then no longer take a label.",
    )
    feedback_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Probability that the label of a logged prediction is requested. Only labels "
        "of these predictions recalibrate the gate.",
    )
    alarm_delta: float = Field(
        default=0.01, gt=0, lt=1, description="False-alarm probability of each drift alarm of a calibration."
    )


class DeadlineSettings(BaseModel):
    """How many requests wait, and how long each may take."""

    queue_limit: int = Field(
        default=64,
        ge=1,
        description="Most requests that wait or run at a time; one more gets 429 with Retry-After. Tenants have "
        "equal parts. Half as many adapters may be made without a client that waits.",
    )
    queue_seconds: float = Field(
        default=300.0,
        gt=0,
        le=LONGEST_SECONDS,
        description="Most seconds of work of all requests that wait or run, by their prices, for each worker; "
        "more gets 429 with Retry-After. While several tenants have work, each has an equal part.",
    )
    deadline_seconds: float = Field(
        default=300.0,
        gt=0,
        le=LONGEST_SECONDS,
        description="Longest time of a request, in seconds; a longer one gets 504, and a retry "
        "joins its adaptation. One that an idle worker would take longer for gets 422 at once.",
    )
    long_deadline_seconds: float = Field(
        default=6 * 3600.0,
        gt=0,
        le=LONGEST_SECONDS,
        description="Longest time of an adaptation that no client waits for (`wait_ms`), in seconds. One that "
        "an idle worker would take longer for gets 422 at once.",
    )
    status_seconds: float = Field(
        default=24 * 3600.0,
        ge=0,
        le=LONGEST_SECONDS,
        description="Seconds for which the server can say how such an adaptation ended without an adapter.",
    )
    cancel_grace_seconds: float = Field(
        default=60.0,
        ge=0,
        le=LONGEST_SECONDS,
        description="Seconds that an adaptation continues after the deadline of every request for "
        "it, so that a retry can join it.",
    )
    drain_seconds: float = Field(
        default=45.0,
        ge=0,
        le=LONGEST_SECONDS,
        description="Seconds that running requests have to finish after the first SIGTERM.",
    )


class BulkSettings(BaseModel):
    """Files and batches: how large, how many, and how long they are stored."""

    max_file_bytes: int = Field(
        default=1 << 30,
        ge=1024,
        description="Largest file of rows for a batch, in bytes; a larger one gets 413.",
    )
    max_stored_file_bytes: int = Field(
        default=10 << 30,
        ge=1024,
        description="Most bytes of all files together; beyond it no file and no batch is accepted. Answers of "
        "batches count, and are written all the same. With keys, a tenant has at most as much as is left free.",
    )
    max_files: int = Field(
        default=10_000,
        ge=1,
        description="Most files, with those of answers. With keys, a tenant has at most as many as are left free.",
    )
    max_batch_rows: int = Field(default=1_000_000, ge=1, description="Most rows of one batch.")
    max_batches: int = Field(
        default=1000,
        ge=1,
        description="Most batches; the tenant's oldest one that has ended is deleted for a new one. With keys, "
        "a tenant has at most as many as are left free.",
    )
    batches_at_once: int = Field(
        default=4,
        ge=1,
        le=256,
        description="Most batches of a tenant that are worked on at a time; the others wait.",
    )
    file_ttl_seconds: float = Field(
        default=30 * 24 * 3600.0,
        gt=0,
        le=LONGEST_SECONDS * 12,
        description="Seconds that a file is stored, where its upload says nothing else, and that a batch is "
        "remembered.",
    )


# pydantic puts the fields of the last base first.
class Settings(
    BulkSettings,
    DeadlineSettings,
    GateSettings,
    LimitSettings,
    SharedStoreSettings,
    StoreSettings,
    WorkerSettings,
    ModelSettings,
    LogSettings,
    AccessSettings,
    NetworkSettings,
    BaseSettings,
):
    """Where the service listens, what it serves, and what it refuses."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_unset(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if not is_empty(value)}

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        name = device.strip().lower()
        if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
            raise ValueError(
                f"there is no device {device!r}: name `cpu`, `cuda`, or one GPU such as `cuda:0`"
            )
        return name

    @model_validator(mode="after")
    def _one_source_of_tenants(self) -> Self:
        if self.keys_file is not None and self.tenant_header is not None:
            raise ValueError("keys name the tenant: use keys_file without tenant_header")
        return self

    @model_validator(mode="after")
    def _one_device_a_worker(self) -> Self:
        if self.workers > 1 and self.executor == "inline":
            raise ValueError("several workers need the executor `process` or `ray`")
        if self.ray_address is not None and self.executor != "ray":
            raise ValueError("`ray_address` needs the executor `ray`")
        if self.executor == "ray" and ":" in self.device:
            raise ValueError("Ray chooses the GPU of a worker: name the device `cuda` or `cpu`")
        if self.workers > 1 and ":" in self.device:
            raise ValueError(f"{self.workers} workers need the device `cuda` or `cpu`, not one by its number")
        return self

    def of_tenant(self, tenant: str) -> Settings:
        """Return the settings with the stores of a tenant, whose name is that of a folder."""
        own: dict[str, Any] = {"data_dir": self.data_dir / "tenants" / tenant}
        if self.store_url is not None:
            own["store_url"] = f"{self.store_url.rstrip('/')}/tenants/{tenant}"
        return self.model_copy(update=own)

    def tenants(self) -> list[str]:
        """Return the names of the tenants that have a data folder, without the default one."""
        root = self.data_dir / "tenants"
        return sorted(path.name for path in root.iterdir()) if root.is_dir() else []

    @property
    def calibrations_dir(self) -> Path:
        """Root folder of the calibrations' journals."""
        return self.data_dir / "calibrations"

    @property
    def names_dir(self) -> Path:
        """Root folder of the names' journals."""
        return self.data_dir / "names"

    @property
    def statuses_dir(self) -> Path:
        """Root folder of the statuses of long adaptations."""
        return self.data_dir / "statuses"

    @property
    def files_dir(self) -> Path:
        """Root folder of the files of batches."""
        return self.data_dir / "bulk" / "files"

    @property
    def batches_dir(self) -> Path:
        """Root folder of the batches."""
        return self.data_dir / "bulk" / "batches"

    @property
    def adapters_dir(self) -> Path:
        """Root folder of the adapter store."""
        return self.data_dir / "adapters"


def is_empty(value: object) -> bool:
    """Return whether `value` counts as not given: None, or a text without a character to see.

    Compose files, unit files and scripts pass a variable on as an empty text where it is not set.
    """
    return value is None or (isinstance(value, str) and not value.strip())


CONFIG_VARIABLE = f"{ENV_PREFIX}CONFIG"
"""The variable that names a configuration file, as the option `--config` does."""


def load_settings(config: Path | None = None, **given: Any) -> Settings:
    """Make the settings from `given`, the environment, the file `config` and the defaults.

    `given` has the values of the command line. What is empty is not given (see `is_empty`), there
    and in the environment. Raises `SettingsError`, which names the wrong setting, also for a
    variable `ABMLL_*` or a line of the file that is no setting.
    """
    _refuse_links(os.environ)
    known = (
        {f"{ENV_PREFIX}{name}".upper() for name in Settings.model_fields} | _OF_CLIENTS | {CONFIG_VARIABLE}
    )
    unknown = sorted(
        name
        for name, value in os.environ.items()
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known and not is_empty(value)
    )
    if unknown:
        raise SettingsError(f"unknown setting in the environment: {unknown[0]}")
    from_file = _read_config(config)
    try:
        return Settings(**from_file | {name: value for name, value in given.items() if not is_empty(value)})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"setting {'.'.join(map(str, first['loc'])) or 'workers'}: {message}") from error


def _read_config(path: Path | None) -> dict[str, Any]:
    """Return the settings of a file in TOML that the environment does not set.

    Without `path`, the environment may name the file. Raises `SettingsError`.
    """
    named = path or os.environ.get(CONFIG_VARIABLE, "").strip()
    if not named:
        return {}
    try:
        values = tomllib.loads(Path(named).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"the configuration file {named} cannot be read: {reason}") from error
    if unknown := sorted(values.keys() - Settings.model_fields.keys()):
        raise SettingsError(f"unknown setting in the configuration file {named}: {unknown[0]}")
    set_there = {name.upper() for name, value in os.environ.items() if not is_empty(value)}
    return {name: value for name, value in values.items() if f"{ENV_PREFIX}{name}".upper() not in set_there}


_OF_CLIENTS = {"ABMLL_API_KEY"}
"""Variables that clients read, which the environment of a server may have too."""
_LINK = re.compile(r"(ABMLL[A-Z0-9_]*?)_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_[A-Z]+(_[A-Z]+)?)?)")


def _refuse_links(environment: Mapping[str, str]) -> None:
    """Raise `SettingsError` for a variable that Kubernetes sets for a Service beside the server.

    It sets them for each Service of the namespace: one named `abmll` gives `ABMLL_PORT`, with an
    address that is no port, and `ABMLL_SERVICE_HOST`.
    https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
    """
    settings = {f"{ENV_PREFIX}{name}".upper() for name in Settings.model_fields}
    for name, value in sorted(environment.items()):
        link = _LINK.fullmatch(name)
        if link and (name not in settings or "://" in value):
            service = link[1].lower().replace("_", "-")
            raise SettingsError(
                f"{name}={value!r} in the environment is a link that Kubernetes sets for the Service "
                f"{service!r}, not a setting of this server. Write `enableServiceLinks: false` into the "
                "pod's spec, or rename the Service"
            )
