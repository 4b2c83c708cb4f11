"""The two files that a running batch appends to, and how far both are valid.

Lines are collected, then both files are flushed to the disk, and then the progress is replaced
whole. After a crash both files are cut to what the progress says, so that what was written but not
yet counted is written again: no row is lost, and none is there twice.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

from model_store.storage import write_durably
from service.bulk.records import Progress


class OutputLostError(Exception):
    """A file has fewer bytes than were on the disk already."""


@dataclass(frozen=True)
class Line:
    """What became of a row: its text with the end of line, and where reading goes on behind it.

    A row that was not `answered` goes into the file of errors.
    """

    text: bytes
    answered: bool
    offset: int
    line: int


class Outputs:
    """Owns the files of one running batch. Used from one thread at a time."""

    def __init__(self, output: Path, errors: Path, progress: Path) -> None:
        """Open both files, and cut them to the progress.

        Raises `OSError`, and `OutputLostError` where a file is shorter.
        """
        self._progress_path = progress
        self._committed = read_progress(progress)
        self._next = self._committed
        self._files: tuple[BinaryIO, BinaryIO] = (output.open("r+b"), errors.open("r+b"))
        self._waiting: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        for file, size in zip(self._files, self._sizes(), strict=True):
            if os.fstat(file.fileno()).st_size < size:
                self.close()
                raise OutputLostError("a file of answers has lost some that were on the disk")
            file.truncate(size)

    def _sizes(self) -> tuple[int, int]:
        return self._committed.output_bytes, self._committed.error_bytes

    @property
    def committed(self) -> Progress:
        """Return how far the files are valid on the disk."""
        return self._committed

    @property
    def waiting_bytes(self) -> int:
        """Return the bytes that are not on the disk yet."""
        return sum(map(len, self._waiting))

    def add(self, line: Line) -> None:
        """Collect the line of the next row."""
        self._waiting[0 if line.answered else 1].extend(line.text)
        self._next = replace(
            self._next,
            rows=self._next.rows + 1,
            completed=self._next.completed + line.answered,
            offset=line.offset,
            line=line.line,
        )

    def commit(self) -> Progress:
        """Put all collected lines on the disk, and return how far the files are valid now.

        Raises `OSError` where the disk refuses; the lines stay collected, and another call tries
        again.
        """
        if self._next.rows == self._committed.rows:
            return self._committed
        sizes = []
        for file, size, lines in zip(self._files, self._sizes(), self._waiting, strict=True):
            if lines:
                _write(file, size, lines)
            sizes.append(size + len(lines))
        done = replace(self._next, output_bytes=sizes[0], error_bytes=sizes[1])
        write_durably(self._progress_path, json.dumps(asdict(done)))
        self._committed = self._next = done
        for lines in self._waiting:
            lines.clear()
        return done

    def close(self) -> None:
        """Close the files. What was not committed is left out."""
        for file in self._files:
            file.close()


def read_progress(path: Path) -> Progress:
    """Return the progress that is stored, or that of a batch that has not begun."""
    try:
        return Progress(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return Progress()


def _write(file: BinaryIO, size: int, lines: bytearray) -> None:
    """Write `lines` behind the first `size` bytes, in place of what an earlier try left there."""
    handle = file.fileno()  # not through a buffer, which would keep what a full disk refused
    os.ftruncate(handle, size)
    view, at = memoryview(lines), size
    while view:
        count = os.pwrite(handle, view, at)
        view, at = view[count:], at + count
    os.fsync(handle)
