"""Fixtures of the commands."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.model_store.conftest import checkpoint

__all__ = ["checkpoint"]


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """Undo what `abmll serve` does to the logs of its process, which is that of all tests."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
