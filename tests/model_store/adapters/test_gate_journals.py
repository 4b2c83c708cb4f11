"""Journals survive kills, full disks and damage."""

import hashlib
import time
from pathlib import Path

import pytest

from model_store.adapters.findings import Finding
from model_store.adapters.gate_journals import GateJournals
from model_store.errors import NonFiniteError, StorageFullError
from tests.model_store.processes import append_forever

ID = "adp_0123456789abcdef"


def journal(root: Path) -> Path:
    return root / ID / "journal.jsonl"


@pytest.fixture
def store(tmp_path):
    return GateJournals(tmp_path)


def test_records_are_read_back_in_order_also_after_a_restart(store, tmp_path):
    store.begin(ID, [{"kind": "snapshot", "text": "ä\n"}, {"value": 0.1}])
    store.append(ID, {"value": 1e-300})
    expected = [{"kind": "snapshot", "text": "ä\n"}, {"value": 0.1}, {"value": 1e-300}]
    assert store.read(ID) == GateJournals(tmp_path).read(ID) == expected
    again = GateJournals(tmp_path)
    again.append(ID, {"value": 2})
    assert again.read(ID) == [*expected, {"value": 2}]


def test_beginning_anew_replaces_and_deleting_removes(store, tmp_path):
    store.begin(ID, [{"a": 1}])
    store.append(ID, {"a": 2})
    store.begin(ID, [{"b": 1}])
    assert store.read(ID) == [{"b": 1}]
    assert store.delete(ID) is True
    assert store.delete(ID) is False
    assert store.read(ID) is None
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LookupError):
        store.append(ID, {"a": 3})
    assert not (tmp_path / ID).exists(), "what is deleted does not come back"


@pytest.mark.parametrize("text", ["", "..", "adp_", "adp_../../x", "adp_01234567/..", ".damaged"])
def test_no_text_reaches_outside_the_store(store, tmp_path, text):
    (tmp_path / "x").mkdir()
    assert store.read(text) is None
    assert store.delete(text) is False
    with pytest.raises(ValueError, match="not a key"):
        store.begin(text, [{"a": 1}])
    with pytest.raises(LookupError):
        store.append(text, {"a": 1})
    assert (tmp_path / "x").exists()


@pytest.mark.parametrize("kept", [1, 20, 40])
def test_half_a_record_at_the_end_is_cut_off(store, tmp_path, kept, caplog):
    store.begin(ID, [{"value": 1}])
    whole = journal(tmp_path).read_bytes()
    store.append(ID, {"value": 2, "more": "x" * 50})
    line = journal(tmp_path).read_bytes()[len(whole) :]
    journal(tmp_path).write_bytes(whole + line[:kept])
    again = GateJournals(tmp_path)
    assert again.read(ID) == [{"value": 1}]
    assert "half a record" in caplog.text
    again.append(ID, {"value": 3})
    assert GateJournals(tmp_path).read(ID) == [{"value": 1}, {"value": 3}]


def test_a_failed_append_leaves_nothing_behind(store, tmp_path, monkeypatch):
    import os

    import model_store.adapters.journals

    store.begin(ID, [{"value": 1}])

    def full(_handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(model_store.adapters.journals.os, "fsync", full)
        with pytest.raises(StorageFullError):
            store.append(ID, {"value": 2})
    assert os.fsync is not full
    assert GateJournals(tmp_path).read(ID) == [{"value": 1}]  # as after a restart
    store.append(ID, {"value": 3})
    assert GateJournals(tmp_path).read(ID) == [{"value": 1}, {"value": 3}]


def test_a_damaged_journal_is_never_read_but_kept_aside(store, tmp_path, caplog):
    store.begin(ID, [{"value": 1}, {"value": 2}])
    content = bytearray(journal(tmp_path).read_bytes())
    content[25] ^= 1
    journal(tmp_path).write_bytes(content)
    assert GateJournals(tmp_path).read(ID) is None
    assert "damaged" in caplog.text
    (aside,) = (tmp_path / ".damaged").iterdir()
    assert (aside / "journal.jsonl").read_bytes() == content
    store.begin(ID, [{"value": 3}])
    assert store.read(ID) == [{"value": 3}]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_change_of_any_whole_record_is_damage(store, tmp_path, number):
    store.begin(ID, [{"value": 1}, {"value": 2}, {"value": 3}])
    lines = journal(tmp_path).read_bytes().splitlines(keepends=True)
    lines[number] = lines[number].replace(b'"value"', b'"Value"')
    journal(tmp_path).write_bytes(b"".join(lines))
    assert GateJournals(tmp_path).read(ID) is None
    assert [path.name for path in tmp_path.iterdir()] == [".damaged"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_stored(store, tmp_path, number):
    store.begin(ID, [{"value": 1}])
    for write in (store.append, lambda id, record: store.begin(id, [record])):
        with pytest.raises(NonFiniteError):
            write(ID, {"rows": [{"value": number}]})
    assert GateJournals(tmp_path).read(ID) == [{"value": 1}]


def seal(text: bytes) -> bytes:
    return b"%s %s\n" % (hashlib.sha256(text).hexdigest()[:16].encode(), text)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 40,
        b"\n",
        seal(b'{"value":NaN}'),
        seal(b'{"value":1e999}'),
        seal(b"no json"),
        seal(b"\xff"),
    ],
)
def test_every_journal_is_verified_and_a_bad_one_harms_no_other(store, tmp_path, content):
    first, second, third = ids = [f"adp_{n:032x}" for n in (1, 2, 3)]
    for id in ids:
        store.begin(id, [{"value": id}])
    (tmp_path / second / "journal.jsonl").write_bytes(content)
    seen = []
    intact, (finding,) = store.verify(lambda id, records: seen.append((id, list(records))))
    assert (intact, finding.id, finding.moved) == (2, second, True)
    assert seen == [(id, [{"value": id}]) for id in (first, third)]
    assert not (tmp_path / second).exists()
    (aside,) = (tmp_path / ".damaged").iterdir()
    assert (aside / "journal.jsonl").read_bytes() == content
    assert store.verify(lambda id, records: None) == (2, [])
    store.append(third, {"value": 1})
    with pytest.raises(LookupError):
        store.append(second, {"value": 1})


def test_what_the_system_refuses_is_a_finding_and_stays(store, tmp_path, monkeypatch):
    for id in (ID, ID + "00"):
        store.begin(id, [{"value": 1}])
    read = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.parent.name == ID:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    intact, (finding,) = store.verify(lambda id, records: None)
    assert (intact, finding) == (1, Finding(ID, "it cannot be read: Permission denied", moved=False))
    assert (tmp_path / ID).exists()


def test_what_is_acknowledged_survives_a_kill(tmp_path, processes):
    ours, theirs = processes.Pipe()
    GateJournals(tmp_path).begin(ID, [{"value": -1}])
    writer = processes.Process(target=append_forever, args=(tmp_path, ID, theirs))
    writer.start()
    acknowledged = -1
    deadline = time.monotonic() + 30
    while acknowledged < 40 and time.monotonic() < deadline:
        acknowledged = ours.recv()
    writer.kill()
    writer.join()
    while ours.poll():
        acknowledged = ours.recv()
    values = [record["value"] for record in GateJournals(tmp_path).read(ID)]
    assert values == list(range(-1, len(values) - 1))
    assert acknowledged >= 40
    assert len(values) - 2 >= acknowledged
