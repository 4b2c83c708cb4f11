"""Every setting of the service, in one frozen model of groups, a file each."""

from __future__ import annotations

from typing import Any, Self

from pydantic import model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.settings.access import AccessSettings
from service.settings.bulk import BulkSettings
from service.settings.deadlines import DeadlineSettings
from service.settings.gates import GateSettings
from service.settings.limits import LimitSettings
from service.settings.log import LogSettings
from service.settings.model import ModelSettings
from service.settings.network import NetworkSettings
from service.settings.stores import SharedStoreSettings, StoreSettings
from service.settings.values import ENV_PREFIX, is_empty
from service.settings.workers import WorkerSettings


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
