"""The command `abmll mcp`, which the client adds to the server's command line."""

from __future__ import annotations

import sys

from abmll_client.connection import DEFAULT_URL


def mcp(url: str = DEFAULT_URL) -> None:
    """Serve tools for agents (MCP) on standard input and output, against the server at --url."""
    try:
        from abmll_client.mcp import serve  # noqa: PLC0415
    except ModuleNotFoundError as error:
        sys.exit(f"{error}: the command needs the client's extra: pip install './client[mcp]'")
    serve(url)
