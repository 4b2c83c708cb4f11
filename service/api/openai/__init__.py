"""OpenAI's surface: models, chats and completions (docs/interfaces-openai.md)."""

from service.api.openai.rendering import error_shape
from service.api.openai.routes import router

PREFIXES = ("/v1/models", "/v1/chat/", "/v1/completions")

__all__ = ["PREFIXES", "error_shape", "router"]
