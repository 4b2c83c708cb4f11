"""Diagnoses beside their adapters: durable, replaced, and deleted with them."""

import errno
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from abmll.assurance.diagnostics import Diagnosis, diagnose
from abmll.assurance.folds import HeldOutAnswer
from abmll.posterior.movement import Movement
from abmll.text.tasks import Example
from model_store import storage
from model_store.adapters.store import AdapterStore
from model_store.errors import StorageFullError
from tests.model_store.processes import adapter

OPTIONS = ("yes", "no", "never")


def diagnosis(folds: int = 4, movement: Movement | None = None) -> Diagnosis:
    """Return a diagnosis with every kind of finding."""
    support = [Example("same", "yes", OPTIONS), Example("same", "no", OPTIONS), *(
        Example(str(i), OPTIONS[i % 2], OPTIONS) for i in range(6))]  # fmt: skip
    rows = [
        HeldOutAnswer(i, (0.1, 0.05, 0.85) if i == 3 else (0.6, 0.3, 0.1), OPTIONS.index(e.output))
        for i, e in enumerate(support)
    ]
    moved = movement or Movement(10, 1 / 3, 1 / 30, 0.3, None)
    found = diagnose(support, rows, rows[::-1], rows, moved, asked_folds=None, folds=folds, samples=8)
    assert found.suspects
    assert found.conflicts
    assert found.unseen_options
    return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AdapterStore]:
    with AdapterStore(tmp_path) as store:
        store.put(adapter(1))
        yield store


def got(store: AdapterStore) -> Diagnosis | None:
    found = store.get(adapter(1).manifest.id)
    assert found is not None
    return found.diagnosis


def test_what_is_put_is_got_also_after_a_restart(store, tmp_path):
    assert got(store) is None
    for folds in (4, 8):
        assert store.put_diagnosis(adapter(1).manifest.id, diagnosis(folds))
        assert got(store) == diagnosis(folds)
    store.close()
    with AdapterStore(tmp_path) as again:
        assert got(again) == diagnosis(8)
        assert [manifest.id for manifest in again.list(None, 9)] == [adapter(1).manifest.id]


def test_the_total_counts_it(store, tmp_path):
    store.put_diagnosis(adapter(1).manifest.id, diagnosis())
    assert store.total_bytes == sum(p.stat().st_size for p in tmp_path.glob("adp_*/*"))


@pytest.mark.parametrize("id", ["adp_" + "0" * 16, "..", "", "adp_../../x"])
def test_there_is_none_of_what_is_not_there(store, id):
    assert store.put_diagnosis(id, diagnosis()) is False


def test_it_goes_with_its_adapter(store, tmp_path):
    store.put_diagnosis(adapter(1).manifest.id, diagnosis())
    store.delete(adapter(1).manifest.id)
    assert not list(tmp_path.glob("adp_*"))
    store.put(adapter(1))
    assert got(store) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format_version": 2, "digest": "", "diagnosis": {}}',
        "another digest",
        "another value",
    ],
)
def test_a_damaged_one_is_as_good_as_none(store, tmp_path, text, caplog):
    name = adapter(1).manifest.id
    store.put_diagnosis(name, diagnosis())
    path = tmp_path / name / "diagnosis.json"
    record = json.loads(path.read_text())
    if text == "another digest":
        text = json.dumps({**record, "digest": "0" * 64})
    if text == "another value":
        record["diagnosis"]["verdict"] = "healthy"
        text = json.dumps(record)
    path.write_text(text)
    assert got(store) is None
    assert "is ignored" in caplog.text
    store.put_diagnosis(name, diagnosis())
    assert got(store) == diagnosis()


def test_one_that_was_written_before_there_were_questions_is_read(store, tmp_path):
    name = adapter(1).manifest.id
    store.put_diagnosis(name, diagnosis())
    path = tmp_path / name / "diagnosis.json"
    record = json.loads(path.read_text())
    assert record["diagnosis"].pop("questions") == []
    text = json.dumps(record["diagnosis"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    path.write_text(json.dumps({**record, "digest": hashlib.sha256(text.encode()).hexdigest()}))
    assert got(store) == diagnosis()


def test_on_a_full_disk_the_earlier_one_stays(store, tmp_path, monkeypatch):
    name = adapter(1).manifest.id
    store.put_diagnosis(name, diagnosis(4))

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "flush", full)
        with pytest.raises(StorageFullError):
            store.put_diagnosis(name, diagnosis(8))
    assert got(store) == diagnosis(4)
    assert {path.name for path in (tmp_path / name).iterdir()} == {
        "manifest.json", "posterior.safetensors", "seal.json", "diagnosis.json",
    }  # fmt: skip
