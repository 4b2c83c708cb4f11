"""The playground: one page that learns from cases and answers inputs, served at `/playground`."""

from service.playground.routes import router

__all__ = ["router"]
