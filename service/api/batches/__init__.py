"""OpenAI's Files and Batches: rows from a file to a file (docs/batches.md)."""

from service.api.batches.routes import FILES, router
from service.api.openai_errors import error_shape

PREFIXES = ("/v1/files", "/v1/batches")

__all__ = ["FILES", "PREFIXES", "error_shape", "router"]
