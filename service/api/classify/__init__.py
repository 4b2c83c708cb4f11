"""Cohere's Classify: `POST /v1/classify`, for clients that speak it."""

from service.api.classify.rendering import error_shape
from service.api.classify.routes import router

PREFIXES = ("/v1/classify",)

__all__ = ["PREFIXES", "error_shape", "router"]
