"""Cohere's Classify: `POST /v1/classify`, for clients that speak it."""

from service.api.classify.routes import router
from service.api.classify.translate import error_shape

PREFIXES = ("/v1/classify",)

__all__ = ["PREFIXES", "error_shape", "router"]
