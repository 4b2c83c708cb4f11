"""Fixtures of other packages."""

from tests.model_store.conftest import checkpoint

__all__ = ["checkpoint"]
