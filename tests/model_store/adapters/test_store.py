"""Adapters survive kills, full disks and damage; an id names one content."""

import errno
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from abmll.assurance.held_out import HeldOutSummary
from abmll.decoder.layout import AdapterLayout
from abmll.posterior.config import NoiseConfig, PosteriorConfig, TemperatureRule
from abmll.similarity.class_examples import ClassExamples
from abmll.similarity.gaussian_process import SimilarityConfig
from abmll.text.tasks import Example
from model_store import storage
from model_store.adapters import manifest
from model_store.adapters import store as adapters
from model_store.adapters.manifest import AdapterManifest, SupportRecord
from model_store.adapters.store import AdapterStore, StoredAdapter, read_adapter
from model_store.errors import NonFiniteError, StorageFullError, StoreInUseError, UnsupportedFormatError
from tests.model_store.processes import adapter, hang_before_sealing, put_forever


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AdapterStore]:
    with AdapterStore(tmp_path / "adapters") as store:
        yield store


def same(a: StoredAdapter | None, b: StoredAdapter) -> bool:
    return a is not None and a.manifest == b.manifest and torch.equal(a.posterior.values, b.posterior.values)


def ids(store: AdapterStore) -> list[str]:
    return [manifest.id for manifest in store.list(None, 10**6)]


def entries(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()} - {".lock"}


def test_what_is_put_is_got_also_after_a_restart(tmp_path):
    with AdapterStore(tmp_path) as store:
        store.put(adapter(1))
        assert same(store.get(adapter(1).manifest.id), adapter(1))
    with AdapterStore(tmp_path) as store:
        assert same(store.get(adapter(1).manifest.id), adapter(1))
        assert store.list(None, 9) == [adapter(1).manifest]
    assert entries(tmp_path) == {adapter(1).manifest.id}


def test_class_examples_are_kept_with_their_adapter(tmp_path):
    given = adapter(1)
    examples = ClassExamples(torch.randn(3, 4), torch.tensor([0, 1, 0]), ((5,), (6, 7)), torch.randn(2, 4))
    with AdapterStore(tmp_path) as store:
        store.put(replace(given, posterior=replace(given.posterior, class_examples=(examples,))))
    with AdapterStore(tmp_path) as store:
        found = store.get(given.manifest.id)
    assert found is not None
    assert torch.equal(found.posterior.class_examples[0].features, examples.features)
    assert found.posterior.class_examples[0].labels.tolist() == [0, 1, 0]
    assert found.posterior.class_examples[0].classes == examples.classes
    assert torch.equal(found.posterior.class_examples[0].names, examples.names)


def test_an_adapter_that_was_stored_before_is_read_and_written_as_it_was(tmp_path):
    """`written_before` was written when a configuration was one flat record (commit a933237)."""
    before = Path(__file__).parent / "written_before" / "adp_0000000000000001"
    found = read_adapter(before.parent, before.name)
    assert found.manifest.config == PosteriorConfig(
        AdapterLayout(2, modules=("q",)),
        NoiseConfig(scale=2.0),
        TemperatureRule(2.5),
        SimilarityConfig(4.0, 0.25, 0.75, "all-minilm-l6-v2"),
    )
    assert torch.equal(found.posterior.values, adapter(1).posterior.values)
    (examples,) = found.posterior.class_examples
    assert torch.equal(examples.features, torch.arange(12.0).view(3, 4) / 8)
    assert torch.equal(examples.names, torch.ones(2, 4))
    assert (examples.labels.tolist(), examples.classes) == ([0, 1, 0], ((5,), (6, 7)))
    with AdapterStore(tmp_path) as store:
        store.put(found)
    written = tmp_path / before.name
    assert json.loads((written / "manifest.json").read_text()) == json.loads(
        (before / "manifest.json").read_text()
    )
    one, other = (load((folder / "posterior.safetensors").read_bytes()) for folder in (before, written))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_manifest_reads_what_it_wrote():
    mixed = (Example("a", "x", ("x", "y")), Example("b", "y", ("y", "z")))
    plain = adapter(1).manifest
    held_out = HeldOutSummary(n=2, correct=1, nll=0.75, temperature_factor=1.5)
    for given in (plain, replace(plain, support=SupportRecord(mixed, 5, (), "89ab"), held_out=held_out)):
        values = json.loads(json.dumps(given.to_json()))
        assert AdapterManifest.from_json(values) == given
        assert values["support"]["n"] == given.support.n == 2
    with pytest.raises(UnsupportedFormatError, match="3"):
        AdapterManifest.from_json({**plain.to_json(), "format_version": 3})


@pytest.mark.parametrize("classes", [True, False])
def test_an_adapter_without_values_of_its_own_is_a_format_of_its_own(tmp_path, classes):
    given = adapter(1)
    examples = ClassExamples(torch.randn(2, 4), torch.tensor([0, 1]), ((5,), (6,)), torch.randn(2, 4))
    posterior = replace(given.posterior, class_examples=(examples,) if classes else ()).without_values()
    with AdapterStore(tmp_path) as store:
        with pytest.raises(ValueError, match="whether the posterior has values"):
            store.put(StoredAdapter(given.manifest, posterior))
        with pytest.raises(ValueError, match="whether the posterior has values"):
            store.put(replace(given, manifest=replace(given.manifest, format_version=2)))
        store.put(StoredAdapter(replace(given.manifest, format_version=2), posterior))
    with AdapterStore(tmp_path) as store:
        found = store.get(given.manifest.id)
        assert store.verify() == (1, [])
        # Sealed by whoever made it, with a manifest of another format.
        folder = tmp_path / given.manifest.id
        (folder / "manifest.json").write_text(json.dumps(given.manifest.to_json()))
        storage.seal(folder)
        assert store.get(given.manifest.id) is None
        assert entries(tmp_path) == {".damaged"}
    assert found is not None
    assert not found.posterior.has_values
    assert len(found.posterior.class_examples) == classes


def test_pages_follow_the_order_of_ids(store):
    for number in (3, 1, 2, 5, 4):
        store.put(adapter(number))
    expected = [adapter(number).manifest.id for number in range(1, 6)]
    assert ids(store) == expected
    first = store.list(None, 2)
    assert [m.id for m in first] == expected[:2]
    assert [m.id for m in store.list(first[-1].id, 2)] == expected[2:4]
    assert [m.id for m in store.list(expected[3], 2)] == expected[4:]
    assert store.list(expected[-1], 2) == []
    assert [m.id for m in store.list("adp_" + "0" * 15 + "25", 9)] == expected[2:], "after an id that is gone"


def test_deleting_is_durable_and_says_whether_there_was_one(store, tmp_path):
    store.put(adapter(1))
    assert store.delete(adapter(1).manifest.id) is True
    assert store.delete(adapter(1).manifest.id) is False
    assert store.get(adapter(1).manifest.id) is None
    assert entries(tmp_path / "adapters") == set()


def test_the_total_is_what_lies_on_the_disk(store, tmp_path):
    def on_disk() -> int:
        return sum(p.stat().st_size for p in (tmp_path / "adapters").glob("adp_*/*"))

    assert store.total_bytes == 0
    for number in (1, 2, 2):
        store.put(adapter(number))
        assert store.total_bytes == on_disk() > 0
    store.delete(adapter(1).manifest.id)
    assert store.total_bytes == on_disk() > 0
    (tmp_path / "adapters" / adapter(2).manifest.id / "manifest.json").write_text("{}")
    assert store.get(adapter(2).manifest.id) is None
    assert store.total_bytes == on_disk() == 0
    store.put(adapter(3))
    store.close()
    with AdapterStore(tmp_path / "adapters") as again:
        assert again.total_bytes == on_disk() > 0


@pytest.mark.parametrize(
    "id", ["", "..", "adp_", "adp_../../x", "adp_0123456G", "adp_01234567/..", "adp_01234567\n", ".lock"]
)
def test_no_text_reaches_outside_the_store(store, tmp_path, id):
    outside = tmp_path / "x"
    outside.mkdir()
    assert store.get(id) is None
    assert store.delete(id) is False
    with pytest.raises(ValueError, match="adapter id"):
        store.put(StoredAdapter(replace(adapter(1).manifest, id=id), adapter(1).posterior))
    assert outside.exists()
    assert entries(tmp_path / "adapters") == set()


def test_a_manifest_of_another_posterior_is_refused(store):
    with pytest.raises(ValueError, match="does not describe"):
        store.put(StoredAdapter(replace(adapter(1).manifest, sites=()), adapter(1).posterior))


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "posterior.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "posterior.safetensors").write_bytes(content)


DAMAGE = [
    flip_a_bit,
    lambda folder: (folder / "posterior.safetensors").write_bytes(b""),
    lambda folder: (folder / "posterior.safetensors").unlink(),
    lambda folder: (folder / "manifest.json").write_text("{"),
    lambda folder: (folder / "seal.json").unlink(),
    lambda folder: [path.unlink() for path in folder.iterdir()],
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_never_returned_but_kept_aside(store, tmp_path, damage, caplog):
    store.put(adapter(1))
    store.put(adapter(2))
    id = adapter(1).manifest.id
    damage(tmp_path / "adapters" / id)
    assert store.get(id) is None
    assert f"{id} is moved aside" in caplog.text
    assert ids(store) == [adapter(2).manifest.id]
    (aside,) = (tmp_path / "adapters" / ".damaged").iterdir()
    assert aside.name.startswith(id)
    store.put(adapter(1))
    assert same(store.get(id), adapter(1)), "it can be made again"


def test_a_damaged_manifest_is_not_listed(store, tmp_path):
    store.put(adapter(1))
    (tmp_path / "adapters" / adapter(1).manifest.id / "manifest.json").write_text("{}")
    assert store.list(None, 9) == []
    assert entries(tmp_path / "adapters") == {".damaged"}


def test_putting_over_a_damaged_entry_repairs_it(store, tmp_path):
    store.put(adapter(1))
    flip_a_bit(tmp_path / "adapters" / adapter(1).manifest.id)
    store.put(adapter(1))
    assert same(store.get(adapter(1).manifest.id), adapter(1))


def test_an_entry_of_another_format_is_left_alone_until_it_is_made_again(store, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "FORMAT_VERSION", 99)
        newer = replace(adapter(1).manifest, format_version=99)
        store.put(StoredAdapter(newer, adapter(1).posterior))
    assert store.get(newer.id) is None
    assert store.list(None, 9) == []
    assert entries(tmp_path / "adapters") == {newer.id}
    store.put(adapter(1))
    assert same(store.get(newer.id), adapter(1))
    assert store.total_bytes == storage.folder_bytes(tmp_path / "adapters" / newer.id)


def test_a_full_disk_stores_nothing_and_harms_nothing(store, tmp_path, monkeypatch):
    store.put(adapter(1))
    write = adapters.write_tensors

    def fill_up(folder, posterior):
        write(folder, posterior)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(adapters, "write_tensors", fill_up)
        with pytest.raises(StorageFullError, match=adapter(2).manifest.id):
            store.put(adapter(2))
    with monkeypatch.context() as patch:
        patch.setattr(storage.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
        with pytest.raises(StorageFullError, match="free"):
            store.put(adapter(2))
    assert entries(tmp_path / "adapters") == {adapter(1).manifest.id}
    assert same(store.get(adapter(1).manifest.id), adapter(1))
    store.put(adapter(2))
    assert same(store.get(adapter(2).manifest.id), adapter(2))


def test_threads_share_a_store(store):
    """Eight threads put, get, list and delete the same few adapters; none reads a partial one."""

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(25):
            one = adapter(rng.randrange(4))
            action = rng.randrange(4)
            if action == 0:
                store.put(one)
            elif action == 1:
                found = store.get(one.manifest.id)
                assert found is None or same(found, one)
            elif action == 2:
                store.delete(one.manifest.id)
            else:
                assert all(m == adapter(m.seed).manifest for m in store.list(None, 9))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    for id in ids(store):
        store.delete(id)
    assert store.total_bytes == 0


def test_one_process_owns_a_root(tmp_path, processes):
    ours, theirs = processes.Pipe()
    owner = processes.Process(target=put_forever, args=(tmp_path, 0, theirs))
    owner.start()
    ours.recv()
    with pytest.raises(StoreInUseError):
        AdapterStore(tmp_path)
    owner.kill()
    owner.join()
    AdapterStore(tmp_path).close()


def test_a_second_store_of_the_same_process_is_refused_too(store, tmp_path):
    with pytest.raises(StoreInUseError):
        AdapterStore(tmp_path / "adapters")


def test_of_an_interrupted_put_nothing_is_left(tmp_path, processes):
    ours, theirs = processes.Pipe()
    victim = processes.Process(target=hang_before_sealing, args=(tmp_path, 1, theirs))
    victim.start()
    assert ours.recv() == ["manifest.json", "posterior.safetensors"]
    victim.kill()
    victim.join()
    assert len(entries(tmp_path)) == 1, "the leftover"
    with AdapterStore(tmp_path) as store:
        assert entries(tmp_path) == set()
        assert store.get(adapter(1).manifest.id) is None
        assert ids(store) == []


def test_what_was_acknowledged_survives_being_killed_at_any_point(tmp_path, processes):
    rng = random.Random(0)
    acknowledged: list[int] = []
    for _ in range(12):
        ours, theirs = processes.Pipe()
        victim = processes.Process(target=put_forever, args=(tmp_path, len(acknowledged), theirs))
        victim.start()
        acknowledged += [ours.recv() for _ in range(rng.randrange(1, 4))]
        time.sleep(rng.random() * 0.02)
        victim.kill()
        victim.join()
        while ours.poll():
            acknowledged.append(ours.recv())
        with AdapterStore(tmp_path) as store:
            stored = ids(store)
            assert all(
                same(store.get(adapter(number).manifest.id), adapter(number)) for number in acknowledged
            )
            # A put may have become durable just before the kill took its acknowledgement. It is
            # whole then.
            unacknowledged = set(stored) - {adapter(number).manifest.id for number in acknowledged}
            assert unacknowledged <= {adapter(len(acknowledged)).manifest.id}
            assert all(same(store.get(id), adapter(len(acknowledged))) for id in unacknowledged)
            assert entries(tmp_path) == set(stored)
    assert len(acknowledged) >= 12


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_stored(store, tmp_path, value):
    given = adapter(1)
    values = given.posterior.values.clone()
    values[3] = value
    for wrong in (
        replace(given, posterior=replace(given.posterior, values=values)),
        replace(given, manifest=replace(given.manifest, losses=(1.0, value))),
    ):
        with pytest.raises(NonFiniteError, match="finite"):
            store.put(wrong)
    assert entries(tmp_path / "adapters") == set()


def spoil(folder: Path, how: str) -> None:
    """Damage a sealed entry, and seal it anew, as a version without these checks would have written
    it.
    """
    manifest, tensors = folder / "manifest.json", folder / "posterior.safetensors"
    values = json.loads(manifest.read_text())
    if how == "a loss that is no number":
        manifest.write_text(json.dumps({**values, "losses": [float("nan")]}))
    elif how == "a loss beyond all numbers":
        manifest.write_text(manifest.read_text().replace("0.25", "1e999"))
    elif how == "another adapter's manifest":
        manifest.write_text(json.dumps({**values, "id": "adp_00000000000000ff"}))
    elif how == "no object":
        manifest.write_text("[]")
    elif how == "a weight that is no number":
        parts = load(tensors.read_bytes())
        next(iter(parts.values()))[0, 0] = float("nan")
        save_file(parts, tensors)
    elif how == "another format":
        manifest.write_text(json.dumps({**values, "format_version": 99}))
    storage.seal(folder)


@pytest.mark.parametrize(
    ("how", "moved"),
    [
        ("a loss that is no number", True),
        ("a loss beyond all numbers", True),
        ("another adapter's manifest", True),
        ("no object", True),
        ("a weight that is no number", True),
        ("another format", False),
    ],
)
def test_one_bad_entry_is_found_and_breaks_neither_lists_nor_others(tmp_path, how, moved):
    with AdapterStore(tmp_path) as store:
        for number in (1, 2, 3):
            store.put(adapter(number))
    (tmp_path / adapter(2).manifest.id / "seal.json").unlink()
    spoil(tmp_path / adapter(2).manifest.id, how)
    with AdapterStore(tmp_path) as store:
        intact, (finding,) = store.verify()
        assert (intact, finding.id, finding.moved) == (2, adapter(2).manifest.id, moved)
        assert store.verify()[0] == 2
        assert ids(store) == [adapter(1).manifest.id, adapter(3).manifest.id]
        assert store.get(adapter(2).manifest.id) is None
        assert same(store.get(adapter(3).manifest.id), adapter(3))
    with AdapterStore(tmp_path) as store:
        assert len(ids(store)) == 2
