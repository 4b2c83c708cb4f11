"""Every kind of place keeps the contract of objects, also between threads and processes."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model_store.objects.contract import Objects
from model_store.objects.opening import check_url, open_objects


def keys(objects: Objects, prefix: str, after: str | None = None) -> list[str]:
    return [found.key for found in objects.list(prefix, after)]


def test_what_is_written_is_read_by_others(objects: Objects, other_objects: Objects) -> None:
    assert objects.get("a/one") is None
    assert objects.tag("a/one") is None
    objects.put("a/one", b"first")
    found = other_objects.get("a/one")
    assert found is not None
    assert found.data == b"first"
    assert other_objects.tag("a/one") == found.tag
    other_objects.put("a/one", b"second")
    again = objects.get("a/one")
    assert again is not None
    assert (again.data, again.tag == found.tag) == (b"second", False)


def test_only_one_creates(objects: Objects, other_objects: Objects) -> None:
    tag = objects.create("one", b"mine")
    assert other_objects.create("one", b"theirs") is None
    found = other_objects.get("one")
    assert found is not None
    assert (found.data, found.tag) == (b"mine", tag)


def test_only_who_knows_the_last_bytes_replaces_them(objects: Objects, other_objects: Objects) -> None:
    first = objects.create("one", b"1")
    assert first is not None
    second = other_objects.replace("one", b"2", first)
    assert second is not None
    assert objects.replace("one", b"3", first) is None
    assert objects.replace("other", b"3", first) is None
    assert objects.get("other") is None
    third = objects.replace("one", b"4", second)
    found = other_objects.get("one")
    assert found is not None
    assert (found.data, found.tag) == (b"4", third)


def test_what_is_deleted_is_gone_and_cannot_be_replaced(objects: Objects, other_objects: Objects) -> None:
    tag = objects.create("a/one", b"1")
    assert tag is not None
    assert other_objects.delete("a/one") is True
    assert objects.delete("a/one") is False
    assert objects.replace("a/one", b"2", tag) is None
    assert objects.get("a/one") is None
    assert keys(objects, "a/") == []
    assert objects.create("a/one", b"3") is not None


def test_lists_have_the_order_of_keys_and_go_on_behind_one(objects: Objects) -> None:
    for key in ("b/2.json", "b/10.json", "b/2a.json", "c/1", "b/deep/er", "bb/1"):
        objects.put(key, b"x" * 3)
    assert keys(objects, "b/") == ["b/10.json", "b/2.json", "b/2a.json", "b/deep/er"]
    assert keys(objects, "b/", "b/2.json") == ["b/2a.json", "b/deep/er"]
    assert keys(objects, "none/") == []
    (first, *_) = objects.list("c/")
    assert (first.size_bytes, first.tag) == (3, objects.tag("c/1"))
    assert first.modified.tzinfo is not None


@pytest.mark.parametrize("key", ["", "/a", "a/", "../a", "a/../b", ".a", "a//b", "a\n", "a b", "-a"])
def test_no_text_reaches_outside(objects: Objects, key: str) -> None:
    for work in (objects.get, objects.tag, objects.delete):
        with pytest.raises(ValueError, match="not a key"):
            work(key)
    for write in (objects.put, objects.create):
        with pytest.raises(ValueError, match="not a key"):
            write(key, b"")


def test_a_counter_loses_no_step_between_threads(objects: Objects, other_objects: Objects) -> None:
    """Two instances of two threads each add 3 to a counter, each by one that replaces what it read."""
    objects.create("counter", b"0")

    def add(number: int) -> None:
        mine = (objects, other_objects)[number % 2]
        done = 0
        while done < 3:
            found = mine.get("counter")
            assert found is not None
            # The bytes of two writers differ: each adds its number to the text.
            text = b"%d by %d" % (int(found.data.split()[0]) + 1, number)
            done += mine.replace("counter", text, found.tag) is not None

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    found = objects.get("counter")
    assert found is not None
    assert found.data.split()[0] == b"12"


@pytest.mark.parametrize("url", ["file:///srv/store", "s3://bucket", "s3://bucket/a/prefix"])
def test_addresses_that_are_taken(url: str) -> None:
    assert check_url(url) == url


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://key:secret@bucket/x", "do not belong into the address"),
        ("s3://bucket/x?access_key_id=1", "do not belong into the address"),
        ("file://host/x", "the address of a store is"),
        ("s3:///x", "the address of a store is"),
        ("https://bucket", "the address of a store is"),
        ("bucket", "the address of a store is"),
    ],
)
def test_addresses_that_are_not(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        check_url(url)
    assert "secret@" not in str(caught.value)


def test_a_server_without_a_bucket_needs_no_library_for_one() -> None:
    code = "import sys, model_store.objects.opening, service.settings; sys.exit('obstore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_leaves_nothing_but_its_objects(tmp_path: Path) -> None:
    objects = open_objects(f"file://{tmp_path}/a%20b", 5)
    tag = objects.create("one/two", b"1")
    assert tag
    objects.create("one/two", b"2")
    objects.replace("one/two", b"3", tag)
    objects.replace("one/two", b"4", tag)
    files = sorted(
        p.relative_to(tmp_path / "a b").as_posix() for p in (tmp_path / "a b").rglob("*") if p.is_file()
    )
    assert files == [".lock", "one/two"]
