"""Readers of labelled examples and of inputs, from JSON Lines, CSV, TSV, Excel and Parquet files.

Whatever a file holds, a reader gives its rows or raises one `AbmllError` that names the file, the
line and the remedy; docs/files.md says what a file may look like. No reader guesses: where a row
can be read in two ways, it is refused.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from abmll.errors import AbmllError, MissingColumnError
from abmll.text import tables
from abmll.text.questions import TypedQuestion, Value
from abmll.text.tasks import CANNOT_TELL, Example, Query, Task
from abmll.text.text_files import MAX_FILE_BYTES, check_file, encoding_of, read_text, streamed_lines

JSON_LINES = frozenset({".jsonl", ".ndjson"})
TABLES = {".csv": ",;\t", ".tsv": "\t"}
"""The separators of each kind of table. The first one that makes `input` a column is taken."""
SUFFIXES = JSON_LINES | TABLES.keys() | tables.SUFFIXES


@dataclass(frozen=True)
class Columns:
    """The columns, or fields of JSON Lines, that hold the text and its label."""

    input: str = "input"
    output: str = "output"


USUAL = Columns()
_FIELDS = ("input", "output", "options")
_OTHER_SUFFIXES = {
    ".json": "write one JSON object a line into a .jsonl",
    ".gz": "unpack it",
    ".zip": "unpack it",
}
_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t])"?[,;\t]*(?=[\r\n])')
_SEPARATOR_NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
_JSON_KINDS = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


def read_examples(path: Path) -> tuple[Example, ...]:
    """Return the labelled examples of a file. Raises `AbmllError`."""
    return tuple(example for _, example in examples_by_line(path))


def read_task(folder: Path) -> Task:
    """Return the task in `folder`, from its `train.jsonl` and `test.jsonl`.

    The second may be empty, in a task that is only trained on. Raises `AbmllError`.
    """
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    untested = test.is_file() and not test.stat().st_size
    try:
        return Task(folder.name, read_examples(train), () if untested else read_examples(test))
    except AbmllError as error:
        raise AbmllError(f"{folder.name}/{error}") from error


def examples_by_line(path: Path, columns: Columns = USUAL) -> Iterator[tuple[str, Example]]:
    """Yield the labelled examples of a file, each behind its place there, such as `x.csv line 3`.

    Raises `AbmllError`.
    """
    for place, row in _rows(path, (columns.input, columns.output)):
        text, output = _text(place, row, columns.input), _text(place, row, columns.output)
        yield place, Example(text, output, _options(place, row))


def queries_by_line(path: Path, columns: Columns = USUAL) -> Iterator[tuple[str, Query]]:
    """Yield the inputs of a file, each behind its place there. Raises `AbmllError`."""
    for place, row in _rows(path, (columns.input,)):
        yield place, Query(_text(place, row, columns.input), _options(place, row))


def rows_by_line(path: Path, columns: Columns = USUAL) -> Iterator[tuple[str, Mapping[str, Any], Query]]:
    """Yield the rows of inputs of a file of any size: the place, all fields, and the input.

    The file is read line by line, so no more than a row is in memory. Of a table, the field
    `options` is a list. Raises `AbmllError`.
    """
    suffix = _known_suffix(path)
    if suffix in tables.SUFFIXES:
        rows = _sheet_rows(path, (columns.input,))
    else:
        lines = partial(streamed_lines, path, encoding_of(path))
        rows = (
            _table_rows(path.name, lines, TABLES[suffix], (columns.input,))
            if suffix in TABLES
            else _json_rows(path.name, lines, _integer)
        )
    empty = True
    for place, row in rows:
        empty = False
        yield place, row, Query(_text(place, row, columns.input), _options(place, row))
    if empty:
        raise AbmllError(f"{path.name} has no rows")


def separator_of(path: Path, columns: Columns = USUAL) -> str:
    """Return the separator of a CSV file, and a comma for other files. Raises `AbmllError`."""
    if path.suffix.lower() != ".csv":
        return ","
    lines = partial(streamed_lines, path, encoding_of(path))
    return _written(lines, TABLES[".csv"], columns.input).separator


def cases_by_line(
    path: Path, questions: Sequence[TypedQuestion], columns: Columns = USUAL
) -> Iterator[tuple[str, str, Mapping[str, Value | None]]]:
    """Yield the cases of a file: the place, the input, and the answers by the names of questions.

    JSON Lines have the answers in an object `answers`. A table has a column for each question, in
    which an empty cell is no answer and `CANNOT_TELL` says that the input does not tell; other
    columns are left out. Raises `AbmllError`, but not for answers that are not the question's.
    """
    if path.suffix.lower() in JSON_LINES:
        for place, row in _rows(path, (columns.input, "answers")):
            answers = row.get("answers")
            if not isinstance(answers, dict):
                raise AbmllError(f'{place}: `answers` is an object by question, such as {{"urgent": true}}')
            yield (
                place,
                _text(place, row, columns.input),
                {name: _answer(given) for name, given in answers.items()},
            )
        return
    for place, row in _rows(path, (columns.input,)):
        cells = {
            typed.question.name: (typed, _one_text(row.get(typed.question.name, ""))) for typed in questions
        }
        given = {name: _answer_of_cell(typed, cell) for name, (typed, cell) in cells.items() if cell}
        if not given:
            names = ", ".join(map(_shown, list(cells)[:8]))
            raise AbmllError(f"{place} answers no question: the columns of answers are {names}")
        yield place, _text(place, row, columns.input), given


def _one_text(cell: str | list[str]) -> str:
    return (cell if isinstance(cell, str) else ", ".join(cell)).strip()


def _answer(given: Any) -> Any:
    """Return an answer of JSON Lines, whose integers were read as numbers with a fraction."""
    return int(given) if isinstance(given, float) and given.is_integer() else given


def _answer_of_cell(typed: TypedQuestion, cell: str) -> Value | None:
    if cell == CANNOT_TELL and CANNOT_TELL not in typed.question.options:
        return None
    for value in typed.values:
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        if cell == shown or (isinstance(value, bool) and cell.lower() == shown):
            return value
    return cell


def _rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a file with their places. Raises `AbmllError`, also where there are none."""
    suffix = _known_suffix(path)
    if suffix in tables.SUFFIXES:
        rows = _sheet_rows(path, needed)
    else:
        text = read_text(path)
        if not text.strip():
            raise AbmllError(f"{path.name} is empty")
        lines = partial(io.StringIO, text, newline="")
        table = suffix in TABLES
        rows = (
            _table_rows(path.name, lines, TABLES[suffix], needed) if table else _json_rows(path.name, lines)
        )
    first = next(rows, None)
    if first is None:
        raise AbmllError(f"{path.name} has no rows below its header")
    yield first
    yield from rows


def _known_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        remedy = _OTHER_SUFFIXES.get(suffix, "save a spreadsheet as CSV UTF-8")
        raise AbmllError(f"{path.name}: expected .jsonl, .csv, .tsv, .xlsx or .parquet; {remedy}")
    return suffix


# ---- JSON Lines ----------------------------------------------------------------------------------


def _json_rows(
    name: str, lines: Callable[[], Iterable[str]], integer: Callable[[str], float] = float
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, marked in enumerate(lines(), start=1):
        line = marked.strip("\ufeff \t\r\n")  # files that were put together have marks inside
        if not line:
            continue
        place = f"{name} line {number}"
        try:
            # Integers of many digits take quadratic time, and no field is a number.
            row = json.loads(line, object_pairs_hook=_object, parse_int=integer)
        except json.JSONDecodeError as error:
            raise AbmllError(f"{place} is not JSON: {error.msg}. Each line is one object") from error
        except AbmllError as error:
            raise AbmllError(f"{place}: {error}") from error
        except RecursionError as error:
            raise AbmllError(f"{place} is nested too deeply") from error
        if not isinstance(row, dict):
            example = '{"input": "a text", "output": "its label"}'
            raise AbmllError(f"{place} is not a JSON object. Each line is one object, such as {example}")
        yield place, row


def _integer(digits: str) -> float:
    return int(digits) if len(digits) < 40 else float(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    for name in _FIELDS:
        if len(fields) < len(pairs) and sum(key == name for key, _ in pairs) > 1:
            raise AbmllError(f"an object has two fields `{name}`")
    return fields


# ---- CSV and TSV ---------------------------------------------------------------------------------


def _table_rows(
    name: str, lines: Callable[[], Iterable[str]], separators: str, needed: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a table as dictionaries, with the cell `options` as a list.

    `lines` returns its lines with their ends, and is called several times. Raises `AbmllError`.
    """
    written = _written(lines, separators, needed[0])
    lines, separator, quoted = written.lines, written.separator, written.quoted
    records = _records(name, lines(), separator, quoted=quoted, spaced=written.spaced)
    names = next((_names(cells) for _, cells in records if not _blank(cells)), [])
    _check_names(name, names, needed, separator)
    empty = ""
    for number, cells in records:
        place = f"{name} line {number}"
        if _blank(cells):
            # A blank line is no row where rows have separators. Other empty rows count, but at the
            # end.
            empty = empty or (place if cells or len(names) == 1 else "")
            continue
        if empty:
            raise AbmllError(f"{empty} is an empty row: delete it")
        if len(cells) < len(names) or not _blank(cells[len(names) :]):
            if not quoted:
                remedy = "save a table whose texts hold tabs or line ends as CSV"
            elif len(cells) < len(names):
                remedy = "add what is missing"
            else:
                remedy = f"put quotes around a text that holds {_SEPARATOR_NAMES[separator]}"
            raise AbmllError(f"{place}: the header has {len(names)} cells, this row {len(cells)}; {remedy}")
        if len(names) > 1 and _names(cells) == names:
            raise AbmllError(f"{place} is the header once more: delete it")
        row: dict[str, Any] = dict(zip(names, cells, strict=False))
        if "options" in row:
            row["options"] = _split(place, row["options"])
        yield place, row


@dataclass(frozen=True)
class _Written:
    """How a table is written. `lines` are those from its header on."""

    lines: Callable[[], Iterable[str]]
    separator: str
    quoted: bool
    spaced: bool


def _written(lines: Callable[[], Iterable[str]], separators: str, needed: str) -> _Written:
    """Return how a table is written, as its header tells.

    That is with which separator, with a space behind it, and in TSV whether cells are quoted. The
    separator is the first that makes `needed` a column, else the one that makes most columns. In
    CSV, a line `sep=;` before the header names it, as Excel writes that.
    """
    quoted = separators != TABLES[".tsv"]
    named = _SEPARATOR_LINE.match(next(iter(lines()), "")) if quoted else None
    if named:
        lines, separators = partial(_without_first, lines, named.end()), named[1]
    header = next((line for line in lines() if line.strip(' \t\r\n,;"')), "")
    most = max(separators, key=header.count)
    separator = next((s for s in separators if needed in _names(header.split(s))), most)
    return _Written(lines, separator, quoted or '"' in header, f"{separator} " in header)


def _sheet_rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a spreadsheet or a Parquet file as dictionaries, as `_table_rows` does.

    Empty rows at the end are left out. Raises `AbmllError`.
    """
    check_file(path)
    rows = tables.records(path)
    names = next((_names(cells) for _, cells in rows if any(cells)), [])
    while names and not names[-1]:
        names.pop()
    _check_names(path.name, names, needed)
    empty = ""
    for place, cells in rows:
        if not any(cells):
            empty = empty or place
            continue
        if empty:
            raise AbmllError(f"{empty} is an empty row: delete it")
        row: dict[str, Any] = {name: cell for name, cell in zip(names, cells, strict=False) if name}
        options = row.get("options")
        if isinstance(options, str):
            row["options"] = _split(place, options)
        yield place, row


def _without_first(lines: Callable[[], Iterable[str]], count: int) -> Iterator[str]:
    """Yield the lines without the first `count` characters, which are of the first line."""
    rest = iter(lines())
    yield next(rest)[count:]
    yield from rest


def _split(place: str, cell: str) -> list[str]:
    options = [option.strip() for option in cell.split("|") if option.strip()]
    if len(options) == 1:
        raise AbmllError(f"{place}: `options` is {_shown(options[0])}, one option; write several as yes|no")
    return options


def _check_names(name: str, names: Sequence[str], needed: Sequence[str], separator: str = "") -> None:
    """Raise `AbmllError` where a column is not there or is there twice.

    `needed` are the column of inputs and that of labels. `separator` is what was taken for it.
    """
    for column, holds in zip(needed, ("input", "output"), strict=False):
        if column not in names:
            columns = ", ".join(map(_shown, names[:8])) or "empty"
            by = f" (separated by {_SEPARATOR_NAMES[separator]})" if separator and len(names) > 1 else ""
            raise MissingColumnError(f"{name} has no column `{column}`: its columns are {columns}{by}", holds)
    for column in {**dict.fromkeys(_FIELDS), **dict.fromkeys(needed)}:
        if names.count(column) > 1:
            raise AbmllError(f"{name} has two columns `{column}`")


def _names(cells: Sequence[str]) -> list[str]:
    return [cell.strip(' \t\r\n"\ufeff') for cell in cells]


def _blank(cells: Sequence[str]) -> bool:
    return not any(cell.strip() for cell in cells)


def _records(
    name: str, lines: Iterable[str], separator: str, *, quoted: bool, spaced: bool
) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each record with the number of its first line.

    With `quoted`, a cell that begins with a quote ends with one; otherwise quotes are text. Raises
    `AbmllError` for a quote without its partner.
    """
    csv.field_size_limit(MAX_FILE_BYTES)
    reader = csv.reader(
        lines,
        delimiter=separator,
        skipinitialspace=spaced,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=True,
    )
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            remedy = "a cell that begins with a quote ends with one, and quotes inside it are doubled"
            raise AbmllError(f"{name} line {number} has a quote without its partner: {remedy}") from error
        yield number, cells if quoted else [_unquoted(cell) for cell in cells]


def _unquoted(cell: str) -> str:
    '''Return a cell such as `"He said ""no"""`, which only spreadsheets write, as its text.'''
    inside = cell[1:-1]
    escaped = len(cell) > 1 and cell[0] == cell[-1] == '"' and '""' in inside
    return inside.replace('""', '"') if escaped and '"' not in inside.replace('""', "") else cell


# ---- fields --------------------------------------------------------------------------------------


def _text(place: str, row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        raise AbmllError(f"{place} has no field `{name}`")
    value = row[name]
    if not isinstance(value, str):
        raise AbmllError(f"{place}: `{name}` is {_JSON_KINDS[type(value)]}; write it as a text, in quotes")
    return _whole(place, name, value)


def _options(place: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    options = row.get("options")
    if options is None:
        return ()
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise AbmllError(f'{place}: `options` is a list of texts, such as ["yes", "no"]')
    return tuple(_whole(place, "options", option) for option in options)


def _whole(place: str, name: str, text: str) -> str:
    """Return `text`. Raises `AbmllError` where it has half a surrogate pair, which is no character."""
    half = _LONE_SURROGATE.search(text)
    if half:
        code = f"\\u{ord(half[0]):04x}"
        raise AbmllError(f"{place}: `{name}` holds {code}, half of a character: write both halves, or none")
    return text


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")
