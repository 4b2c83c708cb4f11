"""The files of a running batch: whatever a crash or a full disk leaves, no row is lost or there
twice.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from service.bulk.outputs import Line, OutputLostError, Outputs, read_progress
from service.bulk.records import Progress


def line(n: int) -> Line:
    return Line(b'{"row": %d}\n' % n, answered=n % 3 != 2, offset=100 * (n + 1), line=n + 1)


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path, Path]:
    for name in ("output", "errors"):
        (tmp_path / name).touch()
    return tmp_path / "output", tmp_path / "errors", tmp_path / "progress.json"


def expected(count: int) -> tuple[bytes, bytes]:
    rows = [line(n) for n in range(count)]
    return b"".join(r.text for r in rows if r.answered), b"".join(r.text for r in rows if not r.answered)


def write(outputs: Outputs, rows: range) -> None:
    for n in rows:
        outputs.add(line(n))


def test_lines_are_in_order_in_the_file_they_belong_to(paths: tuple[Path, Path, Path]) -> None:
    outputs = Outputs(*paths)
    write(outputs, range(4))
    outputs.commit()
    write(outputs, range(4, 10))
    done = outputs.commit()
    outputs.close()
    assert (paths[0].read_bytes(), paths[1].read_bytes()) == expected(10)
    sizes = tuple(map(len, expected(10)))
    assert done == read_progress(paths[2]) == Progress(10, 7, 1000, 10, *sizes)
    assert done.failed == 3


@pytest.mark.parametrize("kept", [0, 1, 5, 40, 10_000])
@pytest.mark.parametrize("lost", ["output", "errors", "neither"])
def test_what_a_crash_leaves_behind_the_progress_is_cut_off(
    paths: tuple[Path, Path, Path], kept: int, lost: str
) -> None:
    """The disk has some bytes of what was not counted, of both files or of one, torn anywhere."""
    outputs = Outputs(*paths)
    write(outputs, range(6))
    outputs.commit()
    outputs.close()
    for path, more in zip(paths[:2], expected(60), strict=True):
        if path.name != lost:
            size = path.stat().st_size
            with path.open("ab") as file:
                file.write((more[size:] + b'{"row": tor')[:kept])
    again = Outputs(*paths)
    assert again.committed.rows == 6
    write(again, range(6, 20))
    again.commit()
    again.close()
    assert (paths[0].read_bytes(), paths[1].read_bytes()) == expected(20)


@pytest.mark.parametrize("call", ["pwrite", "fsync", "replace", "short"])
def test_what_a_full_disk_refuses_is_written_by_the_next_try(
    paths: tuple[Path, Path, Path], call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = Outputs(*paths)
    write(outputs, range(6))
    outputs.commit()
    write(outputs, range(6, 12))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    pwrite = os.pwrite
    with monkeypatch.context() as patch:
        if call == "replace":
            patch.setattr(Path, "replace", full)
        elif call == "short":  # a part is written before the disk is full
            patch.setattr(
                os, "pwrite", lambda f, data, at: full() if len(data) < 20 else pwrite(f, data[:9], at)
            )
        else:
            patch.setattr(os, call, full)
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                outputs.commit()
        assert outputs.committed.rows == read_progress(paths[2]).rows == 6
    write(outputs, range(12, 15))
    assert outputs.commit().rows == 15
    outputs.close()
    assert (paths[0].read_bytes(), paths[1].read_bytes()) == expected(15)


def test_answers_that_were_on_the_disk_and_are_gone_are_an_error(paths: tuple[Path, Path, Path]) -> None:
    outputs = Outputs(*paths)
    write(outputs, range(6))
    outputs.commit()
    outputs.close()
    os.truncate(paths[0], 3)
    with pytest.raises(OutputLostError):
        Outputs(*paths)
