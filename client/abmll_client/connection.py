"""What the blocking and the asynchronous client have in common: address, timeouts, retries."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, Self

import httpx

from abmll_client.affinity import AFFINITY_HEADER, affinity_of
from abmll_client.calls import Call
from abmll_client.errors import ClientError, ConnectionFailedError
from abmll_client.retries import Retries

DEFAULT_URL = "http://127.0.0.1:8000"

# The server answers within its `deadline_seconds`, by default 300, and says what a retry finds.
DEFAULT_TIMEOUT = httpx.Timeout(310.0, connect=5.0)

DEFAULT_CONCURRENCY = 32
"""Half of what a server takes by default (`queue_limit`), so that there is room for others."""

BROKEN = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)
"""Errors of httpx for which there is no answer, and for which a request is sent again."""


API_KEY = "ABMLL_API_KEY"
"""Environment variable of the key that clients send, where they are given none."""


class Connection:
    """The server's address and when requests are sent again; base of both clients."""

    def __init__(self, base_url: str, max_retries: int) -> None:
        url = httpx.URL(base_url)
        # Name and password do not stay in the address: httpx logs it.
        self._auth = (url.username, url.password) if url.userinfo else None
        self.base_url = str(url.copy_with(userinfo=b""))
        self._on_this_machine = is_this_machine(url.host)
        self._retries = Retries(max_retries)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    def __deepcopy__(self, memo: object) -> Self:
        """Return this client: connections are shared. `sklearn.clone` copies parameters."""
        return self


def with_key(headers: Mapping[str, str] | None, api_key: str | None) -> Mapping[str, str]:
    """Return the headers of every request, with the key: the given one, or that of the environment.

    A header `authorization` or `x-api-key` that is given stays, and takes the place of a key.
    """
    given = httpx.Headers(headers)
    key = (os.environ.get(API_KEY) or "").strip() if api_key is None else api_key
    if key and not {"authorization", "x-api-key"} & set(given):
        given["x-api-key"] = key
    return given


def request_arguments(call: Call[Any]) -> dict[str, Any]:
    """Arguments of `call` for `request` of httpx's clients."""
    given: dict[str, Any] = {"method": call.method, "url": call.path, "json": call.body, "params": call.query}
    affinity = call.affinity or affinity_of(call.path, call.body)
    if affinity is not None:
        given["headers"] = {AFFINITY_HEADER: affinity}
    return given if call.timeout_seconds is None else {**given, "timeout": call.timeout_seconds}


def connection_failed(call: Call[Any], error: httpx.TransportError) -> ConnectionFailedError:
    """The client's error for one of `BROKEN`."""
    return ConnectionFailedError(f"{call.method} {call.path}: {type(error).__name__}: {error}")


def is_this_machine(host: str) -> bool:
    """Return whether the host is this machine, which a proxy cannot reach for us."""
    try:
        return ip_address(host).is_loopback or ip_address(host).is_unspecified
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@contextmanager
def environment_checked() -> Iterator[None]:
    """Raise `ClientError` where httpx cannot use the proxies that the environment names."""
    try:
        yield
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise ClientError(
            "the proxy that the environment names (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY) cannot be "
            f"used: {str(error).rstrip('.')}. To go without it, put the server's host into NO_PROXY."
        ) from error
