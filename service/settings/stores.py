"""Settings of what is stored, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import BaseModel, Field, field_validator

from model_store.objects.opening import check_url


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
        description="Disk below `data_dir` for adapters of the shared store, in bytes, for each tenant.",
    )

    @field_validator("store_url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        return url if url is None else check_url(url)
