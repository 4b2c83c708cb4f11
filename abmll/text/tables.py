"""Rows of spreadsheets (Excel) and of Parquet files, read one by one. Needs the extra `tables`.

What a cell holds becomes a text: 3 is "3", an empty cell "", a date as in ISO 8601.
"""

from __future__ import annotations

import datetime
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from abmll.errors import AbmllError

SPREADSHEET, PARQUET = ".xlsx", ".parquet"
SUFFIXES = frozenset({SPREADSHEET, PARQUET})
_BATCH_ROWS = 1024


def records(path: Path) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield the rows of the file, each as its place and its cells: first the names, then the
    others.

    Of a spreadsheet the first sheet is read. A cell is a text, or a list of texts in Parquet.
    Raises `AbmllError` for what cannot be read, and without the extra `tables`.
    """
    try:
        yield from _spreadsheet(path) if path.suffix.lower() == SPREADSHEET else _parquet(path)
    except ImportError as error:
        needs = f"{path.name} needs the extra tables: pip install 'abmll-serve[tables]'"
        raise AbmllError(f"{needs}, or save its rows as CSV UTF-8") from error
    except OSError as error:
        raise AbmllError(f"{path.name} cannot be read: {error.strerror or error}") from error


def _spreadsheet(path: Path) -> Iterator[tuple[str, Sequence[str]]]:
    import openpyxl  # noqa: PLC0415
    from openpyxl.utils.exceptions import InvalidFileException  # noqa: PLC0415

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (InvalidFileException, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise AbmllError(
            f"{path.name} is no Excel workbook: save the sheet again, or as CSV UTF-8"
        ) from error
    try:
        sheet = book.worksheets[0]
        for number, cells in enumerate(sheet.iter_rows(values_only=True), start=1):
            yield f"{path.name} line {number}", [_text(cell) for cell in cells]
    finally:
        book.close()


def _parquet(path: Path) -> Iterator[tuple[str, Sequence[str | list[str]]]]:
    import pyarrow as arrow  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    try:
        with parquet.ParquetFile(path) as file:
            yield path.name, list(file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(_BATCH_ROWS):
                for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    yield f"{path.name} row {number}", [_cell(cell) for cell in cells]
    except arrow.ArrowException as error:
        raise AbmllError(f"{path.name} is no Parquet file: {str(error).splitlines()[0]}") from error


def _cell(value: Any) -> str | list[str]:
    return [_text(one) for one in value] if isinstance(value, list) else _text(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
