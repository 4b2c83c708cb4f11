"""A store in one file: between all kinds of stores, and nothing from outside is believed."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model_store.adapters.opening import Stores, open_stores
from model_store.adapters.transfer import Moved, export_stores, import_stores
from model_store.errors import CorruptArtifactError, FolderNotEmptyError, UnsupportedFormatError
from tests.model_store.processes import adapter

IDS = [adapter(number).manifest.id for number in range(3)]
BEFORE = Path(__file__).parent / "written_before"
JOURNAL_BEFORE = Path(__file__).parents[2] / "service/gating/written_before"


def anything(key: str, records: Sequence[Any]) -> None:
    """Take every calibration: what it means is known to `service`."""


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Stores]]:
    with ExitStack() as stack:

        def open_(name: str, url: str | None = None) -> Stores:
            stores = open_stores(tmp_path / name, url, fresh_seconds=0)
            stack.callback(stores.adapters.close)
            return stores

        yield open_


@pytest.fixture(params=["own", "folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    if request.param == "own":
        return None
    return str(request.getfixturevalue("s3_url")) if request.param == "s3" else f"file://{tmp_path}/shared"


def fill(stores: Stores) -> None:
    for number in (0, 1):
        stores.adapters.put(adapter(number))
    stores.names.put("tickets", IDS[0])
    stores.names.put("tickets", IDS[1], note="better")
    stores.names.put("gone", IDS[0])
    stores.names.delete("gone")
    stores.calibrations.begin(IDS[0], [{"kind": "snapshot", "text": "ä\n"}])
    stores.calibrations.append(IDS[0], {"value": 0.1})


def test_what_was_exported_is_the_same_in_every_kind_of_store(
    opened: Callable[..., Stores], url: str | None, tmp_path: Path
) -> None:
    source, file = opened("source"), tmp_path / "a.tar"
    fill(source)
    assert export_stores(source, file) == {"adapter": 2, "name": 2, "calibration": 1}
    target = opened("target", url)
    moved = import_stores(target, file, anything)
    assert {row.outcome for row in moved} == {"added"}
    assert len(moved) == 5
    for number in (0, 1):
        found = target.adapters.get(IDS[number])
        assert found is not None
        assert found.manifest == adapter(number).manifest
        assert torch.equal(found.posterior.values, adapter(number).posterior.values)
    assert target.names.journals.read("tickets") == source.names.journals.read("tickets")
    assert target.calibrations.read(IDS[0]) == source.calibrations.read(IDS[0])
    assert {row.outcome for row in import_stores(target, file, anything)} == {"already"}
    again = tmp_path / "b.tar"
    export_stores(target, again)
    assert again.read_bytes() == file.read_bytes()
    with pytest.raises(FolderNotEmptyError):
        export_stores(target, file)


def test_what_is_there_with_another_content_stays(
    opened: Callable[..., Stores], url: str | None, tmp_path: Path
) -> None:
    source, file = opened("source"), tmp_path / "a.tar"
    fill(source)
    export_stores(source, file)
    target = opened("target", url)
    other = replace(adapter(0), manifest=replace(adapter(0).manifest, created="2026-02-02"))
    target.adapters.put(other)
    target.names.put("tickets", IDS[2])
    target.calibrations.begin(IDS[0], [{"kind": "snapshot", "text": "ä\n"}, {"value": 0.1}, {"value": 3}])
    moved = import_stores(target, file, anything)
    assert sorted(moved, key=str) == sorted(
        [
            Moved("adapter", IDS[0], "conflict"),
            Moved("adapter", IDS[1], "added"),
            Moved("name", "gone", "added"),
            Moved("name", "tickets", "conflict"),
            Moved("calibration", IDS[0], "already"),
        ],
        key=str,
    )
    found = target.adapters.get(IDS[0])
    assert found is not None
    assert found.manifest == other.manifest
    target.names.refresh("tickets")
    history = target.names.get("tickets")
    assert history is not None
    assert [version.adapter_id for version in history.versions] == [IDS[2]]
    assert len(target.calibrations.read(IDS[0]) or []) == 3


def written(file: Path, members: Sequence[tuple[str, bytes]], **about: Any) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in about.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(data))
    return file


STORE = ("store.json", b'{"format_version": 1}')


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/outside",
        "adapters/../../outside",
        f"adapters/{IDS[0]}/../../../outside",
        f"adapters/{IDS[0]}/code.pickle",
        f"adapters/{IDS[0]}/posterior.safetensors/x",
        "names/../journal.jsonl",
        "names/Upper/journal.jsonl",
        "calibrations/adp_x/journal.jsonl",
        "adapters",
    ],
)
def test_no_member_reaches_outside(opened: Callable[..., Stores], tmp_path: Path, name: str) -> None:
    file = written(tmp_path / "a.tar", [STORE, (name, b"x")])
    target = opened("target")
    with pytest.raises(CorruptArtifactError, match="is no export"):
        import_stores(target, file, anything)
    assert not list(tmp_path.rglob("outside"))
    assert target.adapters.list(None, 9) == []


def test_links_and_members_that_come_twice_are_refused(opened: Callable[..., Stores], tmp_path: Path) -> None:
    target = opened("target")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
        file = written(tmp_path / "a.tar", [("store.json", b"")], type=kind, linkname="/etc/passwd")
        with pytest.raises(CorruptArtifactError, match="is no export"):
            import_stores(target, file, anything)
    with pytest.raises(CorruptArtifactError, match="is no export"):
        import_stores(target, written(tmp_path / "a.tar", [STORE, STORE]), anything)


def test_a_sparse_member_which_may_be_of_any_size_is_refused(
    opened: Callable[..., Stores], tmp_path: Path
) -> None:
    """One of 10 KB may say that it is a terabyte of zeros."""
    claimed = {"GNU.sparse.map": "0,21", "GNU.sparse.size": str(1 << 20)}
    file = written(tmp_path / "a.tar", [STORE], pax_headers=claimed)
    assert file.stat().st_size < 20_000
    with pytest.raises(CorruptArtifactError, match=r"it has 'store\.json'"):
        import_stores(opened("target"), file, anything)


def changed(members: list[tuple[str, bytes]], name: str, change: Callable[[bytes], bytes]) -> Any:
    return [(n, change(data) if n == name else data) for n, data in members]


@pytest.mark.parametrize(
    ("name", "change", "kind"),
    [
        (f"adapters/{IDS[1]}/posterior.safetensors", lambda data: data[:-1] + b"x", CorruptArtifactError),
        (
            f"adapters/{IDS[1]}/manifest.json",
            lambda data: data.replace(b"tiny", b"tony"),
            CorruptArtifactError,
        ),
        (f"adapters/{IDS[1]}/seal.json", lambda data: b"{}", CorruptArtifactError),
        ("names/tickets/journal.jsonl", lambda data: data[:-1], CorruptArtifactError),
        (
            "names/tickets/journal.jsonl",
            lambda data: data.replace(b"better", b"bitter"),
            CorruptArtifactError,
        ),
        (f"calibrations/{IDS[0]}/journal.jsonl", lambda data: b"", CorruptArtifactError),
        ("store.json", lambda data: b'{"format_version": 2}', UnsupportedFormatError),
        ("store.json", lambda data: b"[]", CorruptArtifactError),
    ],
)
def test_of_a_file_with_one_damaged_entry_nothing_is_added(
    opened: Callable[..., Stores], tmp_path: Path, name: str, change: Any, kind: type[Exception]
) -> None:
    source, file = opened("source"), tmp_path / "a.tar"
    fill(source)
    export_stores(source, file)
    with tarfile.open(file) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    assert name in dict(members)
    target = opened("target")
    with pytest.raises(kind):
        import_stores(target, written(tmp_path / "b.tar", changed(members, name, change)), anything)
    assert target.adapters.list(None, 9) == []
    assert target.names.journals.keys() == target.calibrations.keys() == []
    whole = file.read_bytes()
    (tmp_path / "c.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptArtifactError):
        import_stores(target, tmp_path / "c.tar", anything)


def test_every_form_ever_written_moves_to_every_kind_of_store(
    opened: Callable[..., Stores], url: str | None, tmp_path: Path
) -> None:
    """The kept samples: an adapter from before configurations had parts, a calibration without
    questions.
    """
    members = [STORE]
    for root, kind in ((BEFORE, "adapters"), (JOURNAL_BEFORE, "calibrations")):
        members += [
            (f"{kind}/{path.parent.name}/{path.name}", path.read_bytes()) for path in sorted(root.glob("*/*"))
        ]
    target = opened("target", url)
    moved = import_stores(target, written(tmp_path / "a.tar", members), anything)
    assert [(row.kind, row.outcome) for row in moved] == [("adapter", "added"), ("calibration", "added")]
    found = target.adapters.get(BEFORE.glob("*").__next__().name)
    assert found is not None
    assert found.manifest.config.temperature.base == 2.5
    (key,) = target.calibrations.keys()
    lines = (JOURNAL_BEFORE / key / "journal.jsonl").read_bytes().splitlines()
    assert len(target.calibrations.read(key) or []) == len(lines)
