"""OpenAI's surface: models, chats and completions (docs/interfaces-openai.md)."""

from service.api.openai.routes import router
from service.api.openai_errors import error_shape

PREFIXES = ("/v1/models", "/v1/chat/", "/v1/completions")

__all__ = ["PREFIXES", "error_shape", "router"]
