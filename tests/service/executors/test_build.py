"""Which executor settings name, and what its workers get of a node."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from service.executors import loading
from service.executors.build import build_executor
from service.metrics import Metrics
from service.settings import Settings
from service.settings.values import SettingsError


@pytest.mark.parametrize(("workers", "expected"), [(1, 500), (4, 125)])
def test_workers_of_one_machine_share_half_of_its_free_memory(
    monkeypatch: pytest.MonkeyPatch, workers: int, expected: int
) -> None:
    """Each alone would take half of what is left in the container, and all of them more than it has."""
    monkeypatch.setattr(loading, "available_bytes", lambda: 1000)
    assert loading._free_bytes(torch.device("cpu"), workers) == expected


def built(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[list[Settings], Mapping[str, Any]]:
    """Return the settings of each worker on Ray, and what else the executor is built with."""
    found: list[Any] = []
    pytest.importorskip("ray")
    monkeypatch.setattr("service.executors.build._cores", lambda: 9)
    monkeypatch.setattr("service.executors.ray.ray_executor", lambda *a, **more: found.extend([a[0], more]))
    build_executor(Settings(executor="ray", **settings), Metrics(), "process")
    loads, more = found
    return [load.args[0] for load in loads], more


@pytest.mark.parametrize(
    ("given", "threads", "cpus", "gpus"),
    [
        ({"workers": 2}, 4, 4, 0),  # of this machine's 9 cores
        ({"workers": 2, "threads": 3}, 3, 3, 0),
        ({"workers": 2, "ray_address": "auto"}, 1, 1, 0),  # a node may have any number
        ({"workers": 2, "ray_address": "auto", "threads": 16}, 16, 16, 0),
        ({"workers": 2, "device": "cuda"}, None, 1, 1),
    ],
)
def test_what_a_worker_on_ray_gets(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], threads: int | None, cpus: int, gpus: int
) -> None:
    own, more = built(monkeypatch, **given)
    assert len(own) == 2
    for settings in own:
        assert settings.threads == threads
        assert settings.device == given.get("device", "cpu")  # Ray shows an actor its own GPU alone
    assert (more["room"].cpus, more["room"].gpus) == (cpus, gpus)
    assert more["address"] == given.get("ray_address")


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "service.executors.ray", raising=False)
    with pytest.raises(SettingsError, match=r"pip install 'abmll-serve\[ray\]'"):
        build_executor(Settings(executor="ray"), Metrics(), "process")
