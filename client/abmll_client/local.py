"""An engine in this process, in place of a server.

This package imports nothing of the server. A distribution that brings an engine registers, in the
entry point group `abmll_client.local`, a function without arguments that returns a `Client` of it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from abmll_client.client import Client

GROUP = "abmll_client.local"


def local_client() -> Client:
    """Connect to the engine of this process, which starts if it does not run.

    Raises `ImportError` where no engine is installed, and what starting it raises.
    """
    for entry in entry_points(group=GROUP):
        connect: Callable[[], Client] = entry.load()
        return connect()
    raise ImportError(
        "an engine in this process needs abmll-serve, which is not installed: install it, or name a server by base_url"
    )
