from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.embedded import Embedded
from tests.service.conftest import Server, server

__all__ = ["Server", "server"]

SUPPORT = [("good", "yes"), ("bad", "no"), ("great", "yes"), ("awful", "no")]
OPTIONS = ["yes", "no"]


@pytest.fixture
def embedded(server: Server) -> Iterator[Embedded]:
    """Yield the whole application around the fake worker, without a port."""
    running = Embedded(server.app)
    yield running
    running.close()


@pytest.fixture(scope="module")
def shared_embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """Yield what `embedded` does, one for a module."""
    running = Embedded(Server(tmp_path_factory.mktemp("data")).app)
    yield running
    running.close()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the list of the seconds that clients would have slept."""
    seconds: list[float] = []

    async def asleep(delay: float) -> None:
        seconds.append(delay)

    monkeypatch.setattr("time.sleep", seconds.append)
    monkeypatch.setattr("asyncio.sleep", asleep)
    return seconds
