"""What each route needs: nothing, any key, or a key with a scope."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from service.api.http import path_of, settings_of
from service.errors import UnauthenticatedError
from service.principals.records import Principal, Scope
from service.settings import Settings

# What a probe, a browser that opens a page, or a client that reads the description has to see. None
# of it depends on a tenant.
_OPEN = {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/openapi.json", "/redoc"}
_OPEN_BELOW = ("/docs", "/playground", "/static-offline-docs")
METRICS = "/metrics"

_PREDICT = {
    "/v1/predict",
    "/v1/decide",
    "/v1/decisions",
    "/v1/systemone",
    "/v1/classify",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/files",
    "/v1/files/{file_id}",
    "/v1/batches",
    "/v1/batches/{batch_id}/cancel",
    "/v1/adapters/{adapter_id}/feedback",
    "/v2/models/{name:path}/infer",
    "/v2/models/{name:path}/versions/{version}/infer",
}
"""They need `adapt` as well where the request brings examples: the engine refuses to make an
adapter.
"""
_ADAPT = {
    "/v1/adapters",
    "/v1/adapters/{adapter_id}",
    "/v1/adapters/{adapter_id}/cancel",
    "/v1/adapters/{adapter_id}/diagnose",
    "/v1/adapters/{adapter_id}/readapt",
    "/v1/adapters/{adapter_id}/calibrate",
    "/v1/adapters/{adapter_id}/calibration",
    "/v1/names/{name}",
    "/v1/names/{name}/rollback",
}
_ADMIN = {METRICS, "/v1/workers"}


def scope_of(method: str, template: str) -> Scope | None:
    """Return the scope that a route needs; None where any key will do, which is so of most GETs.

    A route that is not listed here needs `admin`, if it is not read with GET.
    """
    if template in _ADMIN:
        return Scope.ADMIN
    if method in ("GET", "HEAD"):
        return None
    if template in _PREDICT:
        return Scope.PREDICT
    return Scope.ADAPT if template in _ADAPT else Scope.ADMIN


def is_open(request: Request, settings: Settings) -> bool:
    """Return whether the path of the request is open to all, also where others need a key."""
    return _needs_no_key(path_of(request), settings)


def _needs_no_key(path: str, settings: Settings) -> bool:
    below = any(path == folder or path.startswith(f"{folder}/") for folder in _OPEN_BELOW)
    return below or path in _OPEN or (settings.open_metrics and path == METRICS)


def scope_dependencies(settings: Settings) -> list[Any]:
    """Return the dependencies of all routes: the scope is checked, and with keys documented."""
    documented = HTTPBearer(auto_error=False, description="A key, as `abmll keys add` makes it.")
    return [Depends(_check_scope), *([Security(documented)] if settings.keys_file else [])]


async def _check_scope(request: Request) -> None:
    principal: Principal | None = getattr(request.state, "principal", None)
    template: str = request.scope["route"].path
    if principal is None:  # `Authentication` has let it pass, since the path is open
        if not _needs_no_key(template, settings_of(request)):
            raise UnauthenticatedError("this path needs a key")
        return
    scope = scope_of(request.method, template)
    if scope is not None:
        principal.require(scope)
