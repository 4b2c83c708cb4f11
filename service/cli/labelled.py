"""The file that `abmll label` writes: the rows it read, with what was answered beside them.

It grows with the answers, so a file that an interrupted command left says where to go on.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from abmll.errors import AbmllError
from abmll.text.files import JSON_LINES, TABLES
from abmll.text.text_files import MAX_FILE_BYTES

_MAX_HEADER_BYTES = 1 << 20
COLUMNS = ("decision", "answer", "confidence", "adapter_id")


@dataclass(frozen=True)
class Answer:
    """What was answered to a row."""

    decision: str
    answer: str
    confidence: float
    adapter_id: str


class LabelledFile:
    """Owns the file. Rows are written in the order of the file that they come from."""

    def __init__(self, path: Path, names: Sequence[str], separator: str = ",") -> None:
        """Go on with `path`, or begin it, for rows with the fields `names`.

        `separator` is that of a .csv.

        A row that was written in part is cut off. Raises `AbmllError` for a suffix that is not
        known, for a field that is one of `COLUMNS`, and for a file that has other columns.
        """
        suffix = path.suffix.lower()
        if suffix not in JSON_LINES | TABLES.keys():
            raise AbmllError(f"{path.name}: the name ends with .csv, .tsv or .jsonl")
        if twice := next((name for name in COLUMNS if name in names), None):
            raise AbmllError(f"the rows have a field {twice!r} already: rename it, {path.name} gets one too")
        self._path, self._separator = path, "\t" if suffix == ".tsv" else separator
        self._is_table = suffix in TABLES
        self._columns = [*names, *COLUMNS]
        csv.field_size_limit(MAX_FILE_BYTES)
        self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
        self._size = 0
        try:
            for size, _ in self._records():
                self._size = size
            self._check_begun()
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(self._size)
        self._file.seek(self._size)
        if self._is_table and not self._size:
            self._append([self._cells(self._columns)])

    def _check_begun(self) -> None:
        """Raise `AbmllError` where the file has something, and no whole record of ours."""
        begun = self._file.read(_MAX_HEADER_BYTES) if not self._size else b""
        if begun and not (self._is_table and self._cells(self._columns).encode().startswith(begun)):
            raise self._foreign()

    def _foreign(self) -> AbmllError:
        return AbmllError(f"{self._path.name} is no file of this command: name another --out")

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Yield the rows that are there, when the file was opened."""
        records = self._records()
        if self._is_table:
            next(records, None)
        for _, record in records:
            yield record

    def write(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[Answer]) -> None:
        """Add rows with their answers, on the disk when this returns. Raises `OSError`."""
        texts = []
        for row, answer in zip(rows, answers, strict=True):
            full = {**row, **vars(answer)}
            if self._is_table:
                texts.append(self._cells([_cell(full.get(name)) for name in self._columns]))
            else:
                texts.append(json.dumps(full, ensure_ascii=False) + "\n")
        self._append(texts)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, texts: Sequence[str]) -> None:
        data = "".join(texts).encode()
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _cells(self, cells: Sequence[str]) -> str:
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=self._separator, lineterminator="\n").writerow(cells)
        return text.getvalue()

    def _records(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield each whole record with the offset behind it, first the header of a table."""
        consumed, at_end = 0, False

        def lines() -> Iterator[str]:
            nonlocal consumed, at_end
            with self._path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    consumed += len(line)
                    yield self._decoded(line)
            at_end = True

        if not self._is_table:
            for line in lines():
                yield consumed, self._json(line)
            return
        reader = csv.reader(lines(), delimiter=self._separator, strict=True)
        names: list[str] | None = None
        try:
            for cells in reader:
                if names is None:
                    names = cells
                    if names != self._columns:
                        raise AbmllError(f"{self._path.name} has other columns: name another --out")
                yield consumed, dict(zip(names, cells, strict=False))
        except csv.Error as error:
            if not at_end:  # else the last row ends inside a quote
                raise self._foreign() from error

    def _decoded(self, line: bytes) -> str:
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise self._foreign() from error

    def _json(self, line: str) -> Mapping[str, Any]:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not found.keys() >= set(COLUMNS):
            raise self._foreign()
        return found


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "|".join(map(str, value))
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
