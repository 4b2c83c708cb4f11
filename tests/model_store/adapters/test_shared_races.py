"""What one process finds damaged, another has mended meanwhile: nothing that was stored is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from model_store.adapters.garbage import find_garbage
from model_store.adapters.opening import Stores, open_stores
from model_store.errors import CorruptArtifactError
from model_store.objects.contract import Object, Objects
from model_store.objects.opening import open_objects
from tests.model_store.processes import adapter

KEY = adapter(0).manifest.id
RECORDS = [{"format_version": 1, "kind": "begun"}, {"kind": "label", "value": 1}]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/shared"


@pytest.fixture
def stores(url: str, tmp_path: Path) -> Iterator[tuple[Stores, Stores]]:
    with ExitStack() as stack:
        both = []
        for name in ("one", "two"):
            opened = open_stores(tmp_path / name, url, fresh_seconds=0)
            stack.callback(opened.adapters.close)
            both.append(opened)
        yield both[0], both[1]


def after_reading(
    monkeypatch: pytest.MonkeyPatch, objects: Objects | None, work: Callable[[], object]
) -> None:
    """Run `work`, of another process, once, right after the next object was read."""
    assert objects is not None
    get = objects.get

    def read(key: str) -> Object | None:
        found = get(key)
        monkeypatch.undo()
        work()
        return found

    monkeypatch.setattr(objects, "get", read)


def test_a_journal_that_another_process_began_anew_stays(
    stores: tuple[Stores, Stores], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = stores
    open_objects(url, 5).put(f"calibrations/{KEY}.jsonl", b"not a journal\n")
    # `one` reads the damaged journal; before it moves that aside, `two` has begun a new one.
    after_reading(monkeypatch, one.objects, lambda: two.calibrations.begin(KEY, RECORDS))
    assert one.calibrations.read(KEY) == RECORDS
    assert two.calibrations.read(KEY) == RECORDS
    assert find_garbage(one, Path(), timedelta())[0].what == "damaged entry"


def test_records_that_mean_nothing_are_moved_aside_only_while_they_are_there(
    stores: tuple[Stores, Stores],
) -> None:
    one, two = stores
    one.calibrations.begin(KEY, [{"kind": "nonsense"}])
    assert two.calibrations.load(KEY) is not None
    one.calibrations.begin(KEY, RECORDS)
    two.calibrations.move_aside(KEY, CorruptArtifactError("nonsense"))
    assert one.calibrations.read(KEY) == two.calibrations.read(KEY) == RECORDS
    two.calibrations.move_aside(KEY, CorruptArtifactError("nonsense"))
    assert one.calibrations.read(KEY) is None


def test_an_adapter_that_another_process_put_again_stays(
    stores: tuple[Stores, Stores], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = stores
    damaged = json.dumps({"format_version": 1, "digests": {}, "tensors": "x", "manifest": "{}"}).encode()
    open_objects(url, 5).put(f"adapters/{KEY}.json", damaged)
    after_reading(monkeypatch, one.objects, lambda: two.adapters.put(adapter(0)))
    one.adapters.get(KEY)
    assert two.adapters.get(KEY) is not None
    assert one.adapters.get(KEY) is not None


def test_what_is_needed_again_by_the_time_it_would_go_stays(stores: tuple[Stores, Stores]) -> None:
    one, two = stores
    one.calibrations.begin(KEY, RECORDS)
    (garbage,) = find_garbage(one, Path(), timedelta())
    assert garbage.what == "calibration without adapter"
    two.adapters.put(adapter(0))
    garbage.remove()
    assert two.calibrations.read(KEY) == RECORDS
    two.adapters.delete(KEY)
    two.calibrations.append(KEY, {"kind": "label", "value": 2})
    garbage.remove()
    assert two.calibrations.read(KEY) is not None
    (again,) = find_garbage(one, Path(), timedelta())
    again.remove()
    assert two.calibrations.read(KEY) is None
