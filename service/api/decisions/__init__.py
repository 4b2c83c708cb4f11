"""OpenAI's Decisions: `POST /v1/decisions` (docs/interfaces-decisions.md)."""

from service.api.decisions.routes import router
from service.api.openai_errors import error_shape

PREFIXES = ("/v1/decisions",)

__all__ = ["PREFIXES", "error_shape", "router"]
