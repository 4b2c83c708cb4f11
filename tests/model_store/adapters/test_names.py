"""Names survive kills, full disks and damage, and no number of a version comes again."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import model_store.adapters.journals
from model_store.adapters.journals import Journals
from model_store.adapters.names import FORMAT_VERSION, NAME, NameStore
from model_store.errors import StorageFullError, UnsupportedFormatError
from tests.model_store.processes import put_names_forever

ADAPTERS = [f"adp_{number:016x}" for number in range(4)]


@pytest.fixture
def store(tmp_path: Path) -> NameStore:
    return NameStore(tmp_path)


def adapters_of(store: NameStore, name: str) -> list[str] | None:
    history = store.get(name)
    return None if history is None else [version.adapter_id for version in history.versions]


def test_versions_are_read_back_also_after_a_restart(store: NameStore, tmp_path: Path) -> None:
    store.put("tickets", ADAPTERS[0], note="ä\n")
    store.put("tickets", ADAPTERS[1])
    history = store.put("tickets", ADAPTERS[0], rollback_of=1)
    assert [version.number for version in history.versions] == [1, 2, 3]
    assert [version.note for version in history.versions] == ["ä\n", None, None]
    assert history.current is not None
    assert (history.current.adapter_id, history.current.rollback_of) == (ADAPTERS[0], 1)
    again = NameStore(tmp_path)
    assert again.get("tickets") == store.get("tickets") == history
    assert history.version(2) == history.versions[1]
    assert (history.version(0), history.version(4)) == (None, None)


def test_numbers_do_not_come_again_after_a_deletion(store: NameStore, tmp_path: Path) -> None:
    store.put("tickets", ADAPTERS[0])
    store.put("tickets", ADAPTERS[1])
    assert store.delete("tickets") is True
    assert store.delete("tickets") is False
    for found in (store, NameStore(tmp_path)):
        assert found.get("tickets") is None
        assert (len(found), found.page(None, 9), found.named(ADAPTERS[1])) == (1, [], [])
    history = NameStore(tmp_path).put("tickets", ADAPTERS[2])
    assert [(version.number, version.adapter_id) for version in history.versions] == [(3, ADAPTERS[2])]
    assert history.version(2) is None
    assert NameStore(tmp_path).get("tickets") == history


def test_pages_are_in_the_order_of_names_and_without_deleted_ones(store: NameStore) -> None:
    for name in ("d", "b", "a", "c"):
        store.put(name, ADAPTERS[0])
    store.delete("b")
    assert [history.name for history in store.page(None, 2)] == ["a", "c"]
    assert [history.name for history in store.page("c", 2)] == ["d"]
    assert store.page("d", 2) == []


def test_names_of_an_adapter_are_those_that_point_to_it_now(store: NameStore) -> None:
    store.put("b", ADAPTERS[0])
    store.put("a", ADAPTERS[0])
    store.put("c", ADAPTERS[0])
    store.put("c", ADAPTERS[1])
    assert store.named(ADAPTERS[0]) == ["a", "b"]
    assert store.named(ADAPTERS[2]) == []


@pytest.mark.parametrize(
    "text", ["", "..", ".damaged", "a/b", "A", "1a", "-a", "a" * 65, "adp_0", "a@1", "ä", "a\n", "a b"]
)
def test_a_text_that_is_no_name_reaches_no_file(store: NameStore, tmp_path: Path, text: str) -> None:
    assert not NAME.fullmatch(text)
    assert store.get(text) is None
    assert store.delete(text) is False
    with pytest.raises(ValueError, match="not a key"):
        store.put(text, ADAPTERS[0])
    assert list(tmp_path.iterdir()) == []


def test_a_version_points_to_an_adapter_id_only(store: NameStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not an adapter id"):
        store.put("tickets", "../x")
    assert list(tmp_path.iterdir()) == []


def test_no_version_is_lost_where_threads_race(store: NameStore, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda n: store.put("tickets", ADAPTERS[n % 4]), range(40)))
    numbers = [history.last for history in written]
    assert sorted(numbers) == list(range(1, 41))
    found = NameStore(tmp_path).get("tickets")
    assert found is not None
    for n, number in enumerate(numbers):
        assert found.versions[number - 1].adapter_id == ADAPTERS[n % 4]


def test_a_failed_write_changes_nothing(
    store: NameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("tickets", ADAPTERS[0])

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(model_store.adapters.journals.os, "fsync", full)
        with pytest.raises(StorageFullError, match="the name of tickets was not stored"):
            store.put("tickets", ADAPTERS[1])
        with pytest.raises(StorageFullError):
            store.delete("tickets")
        with pytest.raises(StorageFullError):
            store.put("other", ADAPTERS[1])
    assert adapters_of(store, "tickets") == [ADAPTERS[0]]
    assert store.get("other") is None
    store.put("tickets", ADAPTERS[2])
    again = NameStore(tmp_path)
    assert adapters_of(again, "tickets") == [ADAPTERS[0], ADAPTERS[2]]
    assert len(again) == 1


def test_half_a_version_at_the_end_is_cut_off(store: NameStore, tmp_path: Path) -> None:
    store.put("tickets", ADAPTERS[0])
    file = tmp_path / "tickets" / "journal.jsonl"
    whole = file.read_bytes()
    store.put("tickets", ADAPTERS[1])
    file.write_bytes(file.read_bytes()[: len(whole) + 30])
    again = NameStore(tmp_path)
    assert adapters_of(again, "tickets") == [ADAPTERS[0]]
    again.put("tickets", ADAPTERS[2])
    assert adapters_of(NameStore(tmp_path), "tickets") == [ADAPTERS[0], ADAPTERS[2]]


def version(number: int, adapter_id: str = ADAPTERS[0]) -> dict[str, Any]:
    return {"version": {"number": number, "adapter_id": adapter_id, "created": "2026-01-01T00:00:00+00:00"}}


def head(name: str = "bad", format_version: int = FORMAT_VERSION) -> dict[str, Any]:
    return {"format_version": format_version, "name": name}


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([head("good"), version(1)], "has the versions of another name, 'good'"),
        ([head(), version(2)], "version 2 stands where 1 was due"),
        ([head(), version(1), version(1)], "version 1 stands where 2 was due"),
        ([head(), version(1, "../x")], "not an adapter id"),
        ([head(), {"version": {"number": 1}}], "cannot be read: TypeError"),
        ([head(), {"other": 1}], "cannot be read: KeyError"),
        ([{"name": "bad"}, version(1)], "cannot be read: KeyError"),
    ],
)
def test_a_name_that_means_nothing_is_moved_aside_and_harms_no_other(
    tmp_path: Path, records: list[Any], reason: str
) -> None:
    NameStore(tmp_path).put("good", ADAPTERS[0])
    Journals(tmp_path, NAME, "name").begin("bad", records)
    store = NameStore(tmp_path)
    (finding,) = store.findings
    assert (store.intact, finding.id, finding.moved) == (1, "bad", True)
    assert reason in finding.reason
    assert store.get("bad") is None
    assert adapters_of(store, "good") == [ADAPTERS[0]]
    (aside,) = (tmp_path / ".damaged").iterdir()
    assert aside.name.startswith("bad-")
    assert store.put("bad", ADAPTERS[1]).last == 1


def test_a_changed_byte_is_damage(store: NameStore, tmp_path: Path) -> None:
    store.put("tickets", ADAPTERS[0])
    store.put("other", ADAPTERS[0])
    file = tmp_path / "tickets" / "journal.jsonl"
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    again = NameStore(tmp_path)
    assert [finding.id for finding in again.findings] == ["tickets"]
    assert again.get("tickets") is None
    assert adapters_of(again, "other") == [ADAPTERS[0]]


def test_a_name_of_another_format_stays_and_is_not_written_over(tmp_path: Path) -> None:
    Journals(tmp_path, NAME, "name").begin("bad", [head(format_version=99), version(1)])
    content = (tmp_path / "bad" / "journal.jsonl").read_bytes()
    store = NameStore(tmp_path)
    (finding,) = store.findings
    assert (finding.id, finding.moved) == ("bad", False)
    with pytest.raises(UnsupportedFormatError, match="name format 99"):
        store.put("bad", ADAPTERS[0])
    assert (tmp_path / "bad" / "journal.jsonl").read_bytes() == content


def test_what_is_acknowledged_survives_a_kill(tmp_path: Path, processes: Any) -> None:
    ours, theirs = processes.Pipe()
    writer = processes.Process(target=put_names_forever, args=(tmp_path, "tickets", ADAPTERS, theirs))
    writer.start()
    acknowledged, deadline = 0, time.monotonic() + 30
    while acknowledged < 40 and time.monotonic() < deadline:
        acknowledged = ours.recv()
    writer.kill()
    writer.join()
    while ours.poll():
        acknowledged = ours.recv()
    found = NameStore(tmp_path).get("tickets")
    assert found is not None
    assert found.last >= acknowledged >= 40
    assert [v.adapter_id for v in found.versions] == [ADAPTERS[n % 4] for n in range(found.last)]
