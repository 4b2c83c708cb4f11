"""A principal: the tenant that a request comes from, the key that proved it, and what the key may
do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from service.errors import ForbiddenError
from service.executors.contract import DEFAULT_TENANT

TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""Names of tenants, which are names of folders too."""


_Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """A frozen record of the keys file, which refuses fields that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Limits(Strict):
    """The most that a tenant may use; None is without limit.

    `work_seconds_per_minute` is in seconds of an idle worker, the unit of prices.
    """

    requests_per_minute: _Count | None = None
    work_seconds_per_minute: Annotated[float, Field(gt=0)] | None = None
    adapters: _Count | None = None
    stored_bytes: _Count | None = None


UNLIMITED = Limits()


class Scope(StrEnum):
    """What a key may do. A key has any of them; none includes another.

    PREDICT: answer with adapters that are there, show them, and label their predictions. ADAPT:
    make, name, calibrate, diagnose and delete adapters. ADMIN: see and change what all tenants
    share.
    """

    PREDICT = "predict"
    ADAPT = "adapt"
    ADMIN = "admin"


@dataclass(frozen=True)
class Principal:
    """Who asks. Everything that a request makes, finds, lists or deletes is of `tenant`.

    The default tenant is that of all requests of a server without keys.

    `key_id` is the public id of the key, None where the server has no keys. `share` names whose
    share of the workers' time is used, where that is not the tenant's.
    """

    tenant: str = DEFAULT_TENANT
    key_id: str | None = None
    scopes: frozenset[Scope] = frozenset(Scope)
    share: str | None = None
    limits: Limits = UNLIMITED

    @property
    def shares_time_as(self) -> str:
        """Return the name whose share of the workers' time is used."""
        return self.share or self.tenant

    def require(self, scope: Scope) -> None:
        """Raise `ForbiddenError` unless the key has the scope."""
        if scope not in self.scopes:
            own = ", ".join(sorted(f"`{own.value}`" for own in self.scopes)) or "none"
            raise ForbiddenError(f"this needs a key with the scope `{scope.value}`; this key has: {own}")


LOCAL = Principal()
"""Who asks where there are no keys: the one tenant, with every scope."""
