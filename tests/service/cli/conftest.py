"""Fixtures of the commands."""

from tests.model_store.conftest import checkpoint

__all__ = ["checkpoint"]
