"""The connection to a cluster, with a Ray that only says whether it is connected."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ray")

from service.executors import ray as transport
from service.executors.ray import RayCluster, RayRoom


class FakeRay:
    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.connected, self.calls = error, False, list[Any]()

    def is_initialized(self) -> bool:
        return self.connected

    def init(self, address: str, **options: Any) -> None:
        self.calls.append((address, options.get("num_cpus")))
        if self.error is not None:
            raise self.error
        self.connected = True

    def shutdown(self) -> None:
        self.connected = False


def test_a_lost_connection_is_left_once_and_the_one_after_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    monkeypatch.setattr(transport, "ray", fake)
    cluster = RayCluster("ray://head:10001", RayRoom(), workers=2)
    first = cluster.connect()
    assert cluster.connect() == first  # the other worker shares it
    cluster.disconnect(first)
    assert not fake.connected
    second = cluster.connect()
    cluster.disconnect(first)  # the other worker finds out later
    assert fake.connected
    assert second != first
    assert fake.calls == [("ray://head:10001", None)] * 2


def test_ray_on_this_machine_has_room_for_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    monkeypatch.setattr(transport, "ray", fake)
    RayCluster(None, RayRoom(cpus=3), workers=4).connect()
    assert fake.calls == [("local", 12)]


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "ray", FakeRay(RuntimeError("timed out")))
    with pytest.raises(ConnectionError, match=r"at ray://head:10001 \(ray_address\): timed out"):
        RayCluster("ray://head:10001", RayRoom(), workers=1).connect()
