"""Proxies of the environment: this machine is reached without them, and one that cannot be used is
named.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from abmll_client import AsyncClient, Client, ClientError, ConnectionFailedError
from service.cli.main import app
from tests.service.conftest import Server

VARIABLES = [
    f(name) for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") for f in (str.lower, str.upper)
]
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_PROXY", NOBODY),
        ("all_proxy", NOBODY),
        ("ALL_PROXY", "socks5://127.0.0.1:9"),
        ("HTTP_PROXY", "socks4://127.0.0.1:9"),
    ],
)
def test_this_machine_is_reached_whatever_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    with Server(tmp_path).listening() as running:
        monkeypatch.setenv(name, value)
        by_name = running.url.replace("127.0.0.1", "localhost")
        for url in (running.url, by_name, running.url.replace("127.0.0.1", "0.0.0.0")):
            with Client(url, max_retries=0) as client:
                assert client.ready()
        assert asyncio.run(_ready(running.url))
        shown = CliRunner().invoke(app, ["demo", "--url", running.url], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, shown.output
        assert "decision" in shown.stdout


async def _ready(url: str) -> bool:
    async with AsyncClient(url, max_retries=0) as client:
        return await client.ready()


@pytest.mark.parametrize("host", ["abmll.invalid", "10.255.255.1", "localhost.example.invalid"])
def test_other_machines_are_reached_through_the_proxy(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", NOBODY)
    refused = pytest.raises(ConnectionFailedError, match="refused")  # by the proxy, which is not there
    with Client(f"http://{host}", max_retries=0, timeout=5) as client, refused:
        client.models()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "socksio"),
        ("ALL_PROXY", "socks4://127.0.0.1:9", "socks4"),
        ("HTTPS_PROXY", "nonsense://x", "nonsense"),
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_proxy_that_cannot_be_used_is_one_line(
    monkeypatch: pytest.MonkeyPatch, kind: type, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ClientError, match=f"proxy that the environment names.*{says}.*NO_PROXY") as caught:
        kind("https://abmll.invalid")
    assert "\n" not in str(caught.value)
    shown = CliRunner().invoke(app, ["demo", "--url", "https://abmll.invalid"])
    assert shown.exit_code == 1
    assert says in shown.stderr
    assert len(shown.stderr.splitlines()) == 1
