"""What several front ends store in one place: of a folder of one's own, a shared one, and S3 alike.

Of a folder of one's own, both front ends are the same object: one process has it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model_store.adapters import shared_journals
from model_store.adapters.contract import ABSENT, Mark
from model_store.adapters.opening import Stores, open_stores
from model_store.adapters.store import StoredAdapter
from model_store.errors import JournalChangedError, StoreUnavailableError
from model_store.objects.opening import open_objects
from tests.model_store.processes import adapter

IDS = [adapter(number).manifest.id for number in range(4)]
ID = IDS[0]


@pytest.fixture(params=["own", "folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    if request.param == "own":
        return None
    return str(request.getfixturevalue("s3_url")) if request.param == "s3" else f"file://{tmp_path}/shared"


@pytest.fixture
def pair(url: str | None, tmp_path: Path) -> Iterator[tuple[Stores, Stores]]:
    """Yield the stores of two front ends, which look at each other's work each time."""
    with ExitStack() as stack:
        first = open_stores(tmp_path / "one", url, fresh_seconds=0, timeout_seconds=20)
        stack.callback(first.adapters.close)
        second = first
        if url is not None:
            second = open_stores(tmp_path / "two", url, fresh_seconds=0, timeout_seconds=20)
            stack.callback(second.adapters.close)
        yield first, second


def same(a: StoredAdapter | None, b: StoredAdapter) -> bool:
    return a is not None and a.manifest == b.manifest and torch.equal(a.posterior.values, b.posterior.values)


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """Run all at once in threads, and return their results, or what they raised."""
    gate = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> Any:
        gate.wait()
        try:
            return work()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(run, works))


# ---- adapters ------------------------------------------------------------------------------------


def test_an_adapter_is_seen_by_others_until_one_of_them_deletes_it(pair: tuple[Stores, Stores]) -> None:
    one, two = (stores.adapters for stores in pair)
    for number in (1, 0, 2):
        one.put(adapter(number))
    assert same(two.get(ID), adapter(0))
    assert two.has(ID)
    assert two.manifest(ID) == adapter(0).manifest
    assert [m.id for m in two.list(None, 2)] == IDS[:2]
    assert [m.id for m in two.list(IDS[1], 2)] == [IDS[2]]
    assert two.verify() == (3, [])
    assert two.delete(ID) is True
    assert (one.get(ID), one.has(ID), one.manifest(ID), one.delete(ID)) == (None, False, None, False)
    assert [m.id for m in one.list(None, 9)] == IDS[1:3]
    one.put(adapter(0))
    assert same(two.get(ID), adapter(0)), "it can be made again"


def test_two_that_store_one_adapter_at_once_store_one_content(pair: tuple[Stores, Stores]) -> None:
    """Two front ends may make an adapter of one id at once; their records of it differ in the time."""
    one, two = (stores.adapters for stores in pair)
    made = [adapter(0), replace(adapter(0), manifest=replace(adapter(0).manifest, created="2026-02-02"))]
    assert at_once(lambda: one.put(made[0]), lambda: two.put(made[1])) == [None, None]
    found = one.get(ID)
    assert found is not None
    assert any(same(found, m) for m in made)
    assert same(two.get(ID), found)
    assert two.verify() == (1, [])


def test_no_text_reaches_another_key(pair: tuple[Stores, Stores]) -> None:
    for text in ("", "..", "adp_../x", "adp_0123456G", "adp_01234567\n", "store"):
        store = pair[0].adapters
        assert (store.get(text), store.has(text), store.manifest(text), store.delete(text)) == (
            None,
            False,
            None,
            False,
        )


def test_an_adapter_that_is_deleted_while_it_is_loaded_is_there_whole_or_not_at_all(
    pair: tuple[Stores, Stores],
) -> None:
    one, two = (stores.adapters for stores in pair)
    for _ in range(4):
        one.put(adapter(0))
        found, *_ = at_once(lambda: two.get(ID), lambda: one.delete(ID))
        assert found is None or same(found, adapter(0)), found
        assert two.get(ID) is None
        assert two.verify() == (0, [])


# ---- journals ------------------------------------------------------------------------------------


def values(stores: Stores, key: str = ID) -> list[int] | None:
    records = stores.calibrations.read(key)
    return None if records is None else [record["value"] for record in records]


def test_a_journal_is_one_for_all(pair: tuple[Stores, Stores]) -> None:
    one, two = (stores.calibrations for stores in pair)
    begun = one.begin(ID, [{"value": 0}])
    at = two.append(ID, {"value": 1})
    assert at == Mark(begun.begun, 2)
    assert values(pair[0]) == [0, 1]
    loaded = one.load(ID, begun)
    assert loaded is not None
    assert (loaded.records, loaded.mark, loaded.anew) == ([{"value": 1}], at, False)
    two.begin(ID, [{"value": 5}])
    again = one.load(ID, at)
    assert again is not None
    assert (list(again.records), again.anew) == ([{"value": 5}], True)
    assert two.delete(ID) is True
    assert (values(pair[0]), one.load(ID), one.delete(ID), one.keys()) == (None, None, False, [])
    with pytest.raises(LookupError):
        one.append(ID, {"value": 1})


def test_who_has_not_seen_the_newest_record_is_told_so(pair: tuple[Stores, Stores]) -> None:
    one, two = (stores.calibrations for stores in pair)
    first = one.begin(ID, [{"value": 0}], ABSENT)
    second = two.append(ID, {"value": 1}, first)
    for write in (one.append, lambda key, record, at: one.begin(key, [record], at)):
        for wrong in (first, ABSENT, Mark("other", 2)):
            with pytest.raises(JournalChangedError):
                write(ID, {"value": 2}, wrong)
    one.append(ID, {"value": 2}, second)
    assert values(pair[1]) == [0, 1, 2]
    with pytest.raises(JournalChangedError):
        one.append(IDS[1], {"value": 2}, second)
    one.delete(ID)
    with pytest.raises(JournalChangedError):
        two.append(ID, {"value": 3}, second)
    assert values(pair[0]) is None, "what is deleted does not come back"


@pytest.mark.parametrize("longest", [1 << 18, 100])
def test_of_records_that_are_added_at_once_none_is_lost(
    pair: tuple[Stores, Stores], longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where every few records go to a part (`longest` 100)."""
    monkeypatch.setattr(shared_journals, "LONGEST_TIP_BYTES", longest)
    pair[0].calibrations.begin(ID, [{"value": -1}])

    def add(number: int) -> Callable[[], None]:
        def work() -> None:
            for value in range(5):
                pair[number].calibrations.append(ID, {"value": 10 * number + value})

        return work

    assert at_once(add(0), add(1)) == [None, None]
    found = values(pair[0])
    assert found is not None
    assert found == values(pair[1])
    assert sorted(found) == [-1, *range(5), *range(10, 15)]
    for number in range(2):
        own = [value for value in found if value // 10 == number]
        assert own == sorted(own), "each in its order"


def test_a_journal_that_is_shortened_loses_no_record_of_others(pair: tuple[Stores, Stores]) -> None:
    """One adds, and the other shortens what it has read to its number of records, each on
    condition.
    """
    pair[0].calibrations.begin(ID, [{"value": 0}])

    def count() -> int:
        return sum(values(pair[0]) or [])

    def retried(work: Callable[[], None]) -> None:
        while True:
            try:
                return work()
            except JournalChangedError:
                continue

    def add() -> None:
        for _ in range(6):
            pair[0].calibrations.append(ID, {"value": 1})

    def shorten() -> None:
        for _ in range(3):

            def once() -> None:
                loaded = pair[1].calibrations.load(ID)
                assert loaded is not None
                total = sum(record["value"] for record in loaded.records)
                pair[1].calibrations.begin(ID, [{"value": total}], loaded.mark)

            retried(once)

    assert at_once(add, shorten) == [None, None]
    assert count() == 6


def test_the_journals_of_an_adapter_go_with_it(pair: tuple[Stores, Stores]) -> None:
    question = f"{ID}.{'0' * 16}"
    for key in (ID, question, IDS[1]):
        pair[0].calibrations.begin(key, [{"value": 1}])
    assert pair[1].calibrations.of_adapter(ID) == [ID, question]
    assert pair[1].calibrations.delete_of(ID) is True
    assert pair[0].calibrations.keys() == [IDS[1]]


# ---- names ---------------------------------------------------------------------------------------


def test_two_that_change_a_name_at_once_make_two_versions(pair: tuple[Stores, Stores]) -> None:
    one, two = (stores.names for stores in pair)

    def point(names: Any, id: str) -> Callable[[], Any]:
        return lambda: [names.put("tickets", id, note=str(n)).last for n in range(3)]

    given = at_once(point(one, IDS[0]), point(two, IDS[1]))
    assert sorted(given[0] + given[1]) == [1, 2, 3, 4, 5, 6], "each call has a number of its own"
    for names in (one, two):
        names.refresh("tickets")
        history = names.get("tickets")
        assert history is not None
        numbers = {IDS[0]: given[0], IDS[1]: given[1]}
        assert all(version.number in numbers[version.adapter_id] for version in history.versions)
        assert len(history.versions) == 6


def test_of_two_that_expect_a_version_one_is_refused(pair: tuple[Stores, Stores]) -> None:
    one, two = (stores.names for stores in pair)
    one.put("tickets", IDS[0], if_version=0)
    results = at_once(
        lambda: one.put("tickets", IDS[1], if_version=1).last,
        lambda: two.put("tickets", IDS[2], if_version=1).last,
    )
    assert sorted(map(str, map(type, results))) == sorted(map(str, (int, JournalChangedError)))
    with pytest.raises(JournalChangedError):
        two.put("tickets", IDS[2], if_version=0)


def test_names_of_others_are_seen_and_their_numbers_never_come_again(pair: tuple[Stores, Stores]) -> None:
    one, two = (stores.names for stores in pair)
    one.put("a", IDS[0])
    one.put("b", IDS[0])
    two.refresh_all()
    assert [history.name for history in two.page(None, 9)] == ["a", "b"]
    assert two.named(IDS[0]) == ["a", "b"]
    assert two.delete("a") is True
    one.refresh("a")
    assert one.get("a") is None
    assert one.delete("a") is False
    assert one.put("a", IDS[1]).last == 2
    two.refresh_all()
    assert two.named(IDS[0]) == ["b"]
    assert two.named(IDS[1]) == ["a"]
    assert two.verify() == (2, [])


# ---- what others share only ----------------------------------------------------------------------


def test_a_name_is_fresh_for_the_time_that_is_set(s3_url: str, tmp_path: Path, s3: Any) -> None:
    one = open_stores(tmp_path / "one", s3_url, fresh_seconds=1000, timeout_seconds=20)
    two = open_stores(tmp_path / "two", s3_url, fresh_seconds=0, timeout_seconds=20)
    one.names.put("tickets", IDS[0])
    one.adapters.put(adapter(0))
    two.names.put("tickets", IDS[1])
    s3.requests.clear()
    one.names.refresh("tickets")
    assert one.names.get("tickets").last == 1  # type: ignore[union-attr]
    assert one.adapters.is_current(ID)
    assert s3.requests == [], "nothing is asked of the store meanwhile"
    assert not two.adapters.is_current(ID)
    assert one.names.put("tickets", IDS[2]).last == 3, "a write is on top of all"
    for stores in (one, two):
        stores.adapters.close()


def test_a_second_read_is_of_the_disk_and_damage_there_is_seen(s3_url: str, tmp_path: Path, s3: Any) -> None:
    stores = open_stores(tmp_path, s3_url, timeout_seconds=20)
    stores.adapters.put(adapter(0))
    assert same(stores.adapters.get(ID), adapter(0))
    s3.requests.clear()
    assert same(stores.adapters.get(ID), adapter(0))
    assert not [request for request in s3.requests if "/tensors/" in request]
    file = tmp_path / "adapters-of-store" / ID / "posterior.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert same(stores.adapters.get(ID), adapter(0))
    assert [request.split()[0] for request in s3.requests if "/tensors/" in request] == ["GET"]
    stores.adapters.close()


def test_the_disk_holds_what_was_used_last_within_its_limit(store_url: str, tmp_path: Path) -> None:
    stores = open_stores(tmp_path / "a", store_url, timeout_seconds=20)
    for number in range(3):
        stores.adapters.put(adapter(number))
        stores.adapters.get(IDS[number])
    size = stores.adapters.total_bytes // 3
    stores.adapters.close()
    small = open_stores(tmp_path / "b", store_url, cache_bytes=2 * size + 100, timeout_seconds=20)
    for number in (0, 1, 0, 2):
        assert same(small.adapters.get(IDS[number]), adapter(number))
    kept = sorted(path.name for path in (tmp_path / "b" / "adapters-of-store").glob("adp_*"))
    assert kept == [IDS[0], IDS[2]]
    small.adapters.close()
    none = open_stores(tmp_path / "b", store_url, cache_bytes=0, timeout_seconds=20)
    assert none.adapters.total_bytes == 0
    assert same(none.adapters.get(ID), adapter(0))
    assert none.adapters.total_bytes == 0
    none.adapters.close()


def test_tensors_that_do_not_match_are_never_returned(store_url: str, tmp_path: Path) -> None:
    stores = open_stores(tmp_path, store_url, timeout_seconds=20)
    objects = open_objects(store_url, 20)
    for number in (0, 1):
        stores.adapters.put(adapter(number))
    (listed,) = objects.list(f"tensors/{ID}/")
    found = objects.get(listed.key)
    assert found is not None
    objects.put(listed.key, found.data[:-1] + b"x")
    assert stores.adapters.get(ID) is None
    assert [m.id for m in stores.adapters.list(None, 9)] == [IDS[1]]
    assert [entry.key[:17] for entry in objects.list("damaged/")] == ["damaged/adapters/"]
    stores.adapters.put(adapter(0))
    assert same(stores.adapters.get(ID), adapter(0)), "it can be made again"
    objects.put(f"adapters/{ID}.json", b"{}")
    intact, (finding,) = stores.adapters.verify()
    assert (intact, finding.id, finding.moved) == (1, ID, True)
    stores.adapters.close()


def test_a_store_of_a_later_version_is_left_alone(store_url: str, tmp_path: Path) -> None:
    open_objects(store_url, 20).put("store.json", b'{"format_version": 2}')
    for _ in range(2):  # the second time shows that the lock was given back
        with pytest.raises(Exception, match="format 2; the one read here is 1"):
            open_stores(tmp_path, store_url, timeout_seconds=20)


def test_a_store_that_does_not_answer_acknowledges_nothing(s3_url: str, s3: Any, tmp_path: Path) -> None:
    from tests.s3_server import answers_503

    stores = open_stores(tmp_path, s3_url, fresh_seconds=0, timeout_seconds=1.5)
    mark = stores.calibrations.begin(ID, [{"value": 0}])
    stores.names.put("tickets", ID)
    with s3.failing(answers_503):
        for work in (
            lambda: stores.adapters.put(adapter(0)),
            lambda: stores.calibrations.append(ID, {"value": 1}, mark),
            lambda: stores.names.put("tickets", IDS[1]),
        ):
            with pytest.raises(StoreUnavailableError):
                work()
    assert stores.adapters.get(ID) is None
    assert values(stores) == [0]
    stores.names.refresh("tickets")
    assert stores.names.get("tickets").last == 1  # type: ignore[union-attr]
    stores.adapters.close()
