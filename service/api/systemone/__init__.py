"""TypeSafe's System One: `POST /v1/systemone` (docs/interfaces-decisions.md)."""

from service.api.systemone.errors import ID_HEADER, error_shape
from service.api.systemone.routes import router

PREFIXES = ("/v1/systemone",)

__all__ = ["ID_HEADER", "PREFIXES", "error_shape", "router"]
