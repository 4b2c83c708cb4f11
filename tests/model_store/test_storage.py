import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from model_store.adapters.gate_journals import GateJournals
from model_store.adapters.names import NameStore
from model_store.adapters.store import AdapterStore
from model_store.errors import CorruptArtifactError, StorageFullError, UnusableFolderError
from model_store.progress import no_report, progress_bar
from model_store.storage import (
    cached_folder,
    check_seal,
    refusal_is_an_error,
    require_free_space,
    seal,
    staged,
)


def build(folder: Path) -> None:
    (folder / "a.txt").write_text("content")
    (folder / "inner").mkdir()
    (folder / "inner" / "b.txt").write_text("more")


def test_a_folder_appears_complete_and_alone(tmp_path: Path):
    target = tmp_path / "new" / "target"
    with staged(target, "it") as staging:
        build(staging)
        assert not target.exists()
    assert (target / "inner" / "b.txt").read_text() == "more"
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_folder_replaces_the_one_before(tmp_path: Path):
    for text in ("old", "new"):
        with staged(tmp_path / "target", "it") as staging:
            (staging / text).write_text(text)
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "new"]


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path: Path, error):
    with staged(tmp_path / "target", "it") as staging:
        build(staging)
    with pytest.raises(type(error)), staged(tmp_path / "target", "it") as staging:
        (staging / "half").write_text("half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target" / "a.txt").read_text() == "content"


def test_a_full_disk_leaves_nothing(tmp_path: Path):
    with (
        pytest.raises(StorageFullError, match="the weights"),
        staged(tmp_path / "target", "the weights") as staging,
    ):
        (staging / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_the_full_disk_of_safetensors_is_recognised():
    """The text is that of version 0.8 on a full tmpfs."""
    with pytest.raises(StorageFullError, match="tensors"), refusal_is_an_error("tensors"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG]
)
def test_a_folder_that_cannot_be_used_is_named_with_the_reason(number: int) -> None:
    reason = os.strerror(number)
    expected = f"cannot use /data/x for the base: {reason}; name another"
    with pytest.raises(UnusableFolderError, match=expected), refusal_is_an_error("the base"):
        raise OSError(number, reason, "/data/x")
    with pytest.raises(UnusableFolderError, match=f"for the base: {reason}"), refusal_is_an_error("the base"):
        raise SafetensorError(f"Error while serializing: I/O error: {reason} (os error {number})")


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """A user who may do nothing in the tests' folders; root may do everything."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)
    yield
    os.seteuid(mine)


def as_a_file(folder: Path) -> Path:
    folder.write_text("")
    return folder


def below_a_file(folder: Path) -> Path:
    return as_a_file(folder) / "below"


def by_a_long_name(folder: Path) -> Path:
    return folder / ("x" * 300)


OWNERS = {
    "adapters": AdapterStore,
    "journals": GateJournals,
    "names": NameStore,
    "cache": lambda folder: cached_folder(folder / "model", build, "a base", no_report),
    "export": lambda folder: staged(folder / "out", "an export").__enter__(),
}


@pytest.mark.parametrize("wrong", [as_a_file, below_a_file, by_a_long_name])
@pytest.mark.parametrize("own", OWNERS.values(), ids=OWNERS)
def test_what_is_no_folder_is_named(tmp_path: Path, own: Any, wrong: Any) -> None:
    folder = wrong(tmp_path / "folder")
    with pytest.raises(UnusableFolderError, match=f"cannot use {tmp_path}/folder.* for "):
        own(folder)


@pytest.mark.parametrize("own", OWNERS.values(), ids=OWNERS)
def test_a_folder_without_rights_is_named(tmp_path: Path, unprivileged: None, own: Any) -> None:
    if os.getuid():
        tmp_path.chmod(0o500)
    with pytest.raises(UnusableFolderError, match=f"cannot use {tmp_path}.* for .*: Permission denied"):
        own(tmp_path / "folder")


def test_a_cache_that_is_there_needs_no_rights_to_write(tmp_path: Path) -> None:
    cached_folder(tmp_path / "model", build, "a base", no_report)
    modes = [tmp_path, *tmp_path.rglob("*")]
    for path in modes:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert (cached_folder(tmp_path / "model", build, "a base", no_report) / "a.txt").is_file()
    finally:
        for path in modes:
            path.chmod(0o755)


@pytest.mark.parametrize(
    ("umask", "rights", "folder_rights"),
    [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o002, 0o664, 0o775), (0o077, 0o600, 0o700)],
)
def test_files_have_the_rights_that_the_umask_leaves(
    tmp_path: Path, umask: int, rights: int, folder_rights: int
) -> None:
    """safetensors writes 0600 whatever the umask, and another user could not read the cache."""
    before = os.umask(umask)
    try:
        with staged(tmp_path / "target", "it") as staging:
            build(staging)
            save_file({"x": torch.zeros(1)}, staging / "weights.safetensors")
            (staging / "link").symlink_to("/etc/hostname")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "target").rglob("*") if path.is_file() and not path.is_symlink()]
    assert {path.stat().st_mode & 0o777 for path in files} == {rights}
    assert (tmp_path / "target").stat().st_mode & 0o777 == folder_rights
    assert len(files) == 3


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path):
    with pytest.raises(FileNotFoundError), refusal_is_an_error("it"):
        (tmp_path / "absent").read_bytes()
    with pytest.raises(SafetensorError), refusal_is_an_error("it"):
        save_file({"x": torch.zeros(1)}, tmp_path / "absent" / "file")


def test_space_is_asked_for_beforehand(tmp_path: Path):
    require_free_space(tmp_path, 1, "it")
    with pytest.raises(StorageFullError, match="it needs 1000000000000 MB"):
        require_free_space(tmp_path, 10**18, "it")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "a.txt").write_text("contenT"),
        lambda folder: (folder / "a.txt").write_text(""),
        lambda folder: (folder / "inner" / "b.txt").unlink(),
        lambda folder: (folder / "seal.json").unlink(),
        lambda folder: (folder / "seal.json").write_text("{"),
        lambda folder: (folder / "seal.json").write_text("3"),
    ],
)
def test_damage_is_seen_and_repaired(tmp_path: Path, damage, caplog):
    target = cached_folder(tmp_path / "target", build, "it", no_report)
    check_seal(target)
    damage(target)
    with pytest.raises(CorruptArtifactError):
        check_seal(target)
    cached_folder(target, build, "it", no_report)
    check_seal(target)
    assert (target / "a.txt").read_text() == "content"
    assert "building again" in caplog.text


def test_a_seal_can_be_checked_in_part(tmp_path: Path):
    build(tmp_path)
    seal(tmp_path)
    (tmp_path / "inner" / "b.txt").write_text("other")
    check_seal(tmp_path, "a.txt")
    with pytest.raises(CorruptArtifactError, match=r"b\.txt"):
        check_seal(tmp_path, "a.txt", "inner/b.txt")
    with pytest.raises(CorruptArtifactError, match="incomplete"):
        check_seal(tmp_path, "unknown")


def test_an_intact_folder_is_not_built_again_and_needs_no_writing(tmp_path: Path):
    target = cached_folder(tmp_path / "target", build, "it", no_report)
    (tmp_path / "target.lock").unlink(missing_ok=True)
    cached_folder(target, lambda folder: pytest.fail("built again"), "it", no_report)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


BUILDER = dedent("""
    import sys, time
    from pathlib import Path
    from model_store.progress import no_report
    from model_store.storage import cached_folder

    root, seconds = Path(sys.argv[1]), float(sys.argv[2])

    def build(folder):
        with (root / "builds").open("a") as log:
            log.write("built\\n")
        (folder / "first").write_text("x" * 1000)
        print("half", flush=True)
        time.sleep(seconds)
        (folder / "second").write_text("y" * 1000)

    cached_folder(root / "target", build, "it", lambda what, done, total: print(what, flush=True))
    print("done", flush=True)
""")


def builder(root: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(root), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_of_processes_that_start_at_once_one_builds(tmp_path: Path):
    processes = [builder(tmp_path, 0.7) for _ in range(4)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert all(output.endswith("done\n") for output in outputs)
    assert (tmp_path / "builds").read_text() == "built\n"
    assert sum("Waiting for another process" in output for output in outputs) == 3
    check_seal(tmp_path / "target")


def test_a_killed_builder_leaves_nothing_visible_and_the_next_one_cleans_up(tmp_path: Path):
    victim = builder(tmp_path, 60)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "half\n"
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    assert not (tmp_path / "target").exists()
    assert len(list(tmp_path.glob(".staging-*"))) == 1
    assert builder(tmp_path, 0).communicate(timeout=60)[0].endswith("done\n")
    assert not list(tmp_path.glob(".staging-*"))
    assert set(json.loads((tmp_path / "target" / "seal.json").read_text())) == {"first", "second"}


def test_each_stage_is_logged_once_and_nothing_drawn_where_there_is_no_terminal(caplog, capfd):
    with caplog.at_level("INFO", "model_store"), progress_bar() as report:
        for done in range(3):
            report("Downloading", done, 3)
        report("Converting", 0, 0)
    assert caplog.messages == ["Downloading", "Converting"]
    assert capfd.readouterr() == ("", "")
