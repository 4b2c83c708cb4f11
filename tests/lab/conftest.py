"""Fixtures of the packages below the laboratory."""

from tests.abmll.conftest import _one_thread, make_model, support
from tests.model_store.conftest import checkpoint, prior, processes

__all__ = ["_one_thread", "checkpoint", "make_model", "prior", "processes", "support"]
