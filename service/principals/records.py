"""A principal: the tenant that a request comes from, the key that proved it, and what the key may do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from service.errors import ForbiddenError
from service.executors.contract import DEFAULT_TENANT

TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""Names of tenants, which are names of folders too."""


class Scope(StrEnum):
    """What a key may do. A key has any of them; none includes another.

    PREDICT: answer with adapters that are there, show them, and label their predictions. ADAPT: make,
    name, calibrate, diagnose and delete adapters. ADMIN: see and change what all tenants share.
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

    @property
    def shares_time_as(self) -> str:
        """Return the name whose share of the workers' time is used."""
        return self.share or self.tenant

    def require(self, scope: Scope) -> None:
        """Raise `ForbiddenError` unless the key has the scope."""
        if scope not in self.scopes:
            own = ", ".join(sorted(self.scopes)) or "none"
            raise ForbiddenError(f"this needs a key with the scope {scope!r}; this key has: {own}")


LOCAL = Principal()
"""Who asks where there are no keys: the one tenant, with every scope."""
