"""Processes of a shared store that are killed: what was acknowledged is there, and nothing half."""

from __future__ import annotations

import time
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from model_store.adapters import shared_journals
from model_store.adapters.garbage import find_garbage
from model_store.adapters.opening import open_stores
from tests.model_store.processes import adapter, hang_before_the_record, share_forever

ID = adapter(1).manifest.id


@pytest.fixture
def environment(store_url: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """Return what the environment says of the place; the fork server is older than that."""
    found: dict[str, str] = {}
    if store_url.startswith("s3"):
        found = request.getfixturevalue("s3").environment
    return found


def test_of_a_put_that_was_killed_before_its_record_nothing_is_seen_and_gc_finds_it(
    store_url: str, environment: dict[str, str], tmp_path: Path, processes: ForkServerContext
) -> None:
    ours, theirs = processes.Pipe()
    victim = processes.Process(
        target=hang_before_the_record, args=(tmp_path / "victim", store_url, environment, 1, theirs)
    )
    victim.start()
    assert ours.recv() == f"adapters/{ID}.json"
    stores = open_stores(tmp_path / "own", store_url, fresh_seconds=0)
    assert (stores.adapters.get(ID), stores.adapters.list(None, 9)) == (None, [])
    victim.kill()
    victim.join()
    assert find_garbage(stores, tmp_path, timedelta(days=1)) == [], "not while it may be under way"
    (garbage,) = find_garbage(stores, tmp_path, timedelta())
    assert garbage.what == "tensors without adapter"
    assert garbage.size_bytes > 1000
    stores.adapters.put(adapter(1))
    garbage.remove()
    assert find_garbage(stores, tmp_path, timedelta()) == []
    assert stores.adapters.verify() == (1, [])
    stores.adapters.close()


def test_what_was_acknowledged_survives_the_kill_of_one_of_two_that_append(
    store_url: str, environment: dict[str, str], tmp_path: Path, processes: ForkServerContext
) -> None:
    stores = open_stores(tmp_path / "own", store_url, fresh_seconds=0)
    stores.calibrations.begin(ID, [{"value": -1}])
    ours, theirs = processes.Pipe()
    victim = processes.Process(
        target=share_forever, args=(tmp_path / "victim", store_url, environment, ID, theirs)
    )
    victim.start()
    acknowledged, mine, deadline = -1, 0, time.monotonic() + 30
    while acknowledged < 8 and time.monotonic() < deadline:
        mine += 1
        stores.calibrations.append(ID, {"value": 1000 + mine})
        while ours.poll():
            acknowledged = ours.recv()
    victim.kill()
    victim.join()
    while ours.poll():
        acknowledged = ours.recv()
    assert acknowledged >= 8
    found = [record["value"] for record in stores.calibrations.read(ID) or []]
    theirs_found = [value for value in found if 0 <= value < 1000]
    assert theirs_found == list(range(len(theirs_found)))
    assert len(theirs_found) - 1 in {acknowledged, acknowledged + 1}
    assert [value for value in found if value > 1000] == [1001 + n for n in range(mine)]
    stores.adapters.close()


def test_parts_that_no_tip_names_are_garbage_and_named_ones_are_not(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_journals, "LONGEST_TIP_BYTES", 60)
    stores = open_stores(tmp_path / "own", store_url, fresh_seconds=0)
    objects = stores.objects
    assert objects is not None
    stores.adapters.put(adapter(1))
    stores.calibrations.begin(ID, [{"value": 0}])
    for value in range(1, 5):
        stores.calibrations.append(ID, {"value": value})
    assert len(list(objects.list("calibrations-parts/"))) >= 2
    objects.put(f"calibrations-parts/{ID}/left.jsonl", b"x")
    objects.put(f"diagnoses/{adapter(2).manifest.id}.json", b"{}")
    objects.put("damaged/names/tickets-0.jsonl", b"x")
    stores.calibrations.begin(adapter(3).manifest.id, [{"value": 0}])
    found = find_garbage(stores, tmp_path, timedelta())
    assert sorted(garbage.what for garbage in found) == [
        "calibration without adapter",
        "damaged entry",
        "diagnosis without adapter",
        "records without journal",
    ]
    for garbage in found:
        garbage.remove()
    assert find_garbage(stores, tmp_path, timedelta()) == []
    assert [record["value"] for record in stores.calibrations.read(ID) or []] == [0, 1, 2, 3, 4]
    stores.adapters.close()
