"""The surface of Cohere's Classify: `POST /v1/classify` (docs/interfaces-classify.md)."""

from service.api.classify.rendering import error_shape
from service.api.classify.routes import router

PREFIXES = ("/v1/classify",)

__all__ = ["PREFIXES", "error_shape", "router"]
