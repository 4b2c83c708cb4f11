"""Excel and Parquet files give the rows that the same table gives as CSV."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow
import pytest
from pyarrow import parquet

from abmll.errors import AbmllError
from abmll.text.files import (
    Columns,
    cases_by_line,
    examples_by_line,
    queries_by_line,
    read_examples,
    rows_by_line,
)
from abmll.text.questions import Question, TypedQuestion
from abmll.text.tasks import Example, Query

HEADER = ["input", "output", "options", "date", "n"]
ROWS: list[list[Any]] = [
    ["I was charged, twice", "billing", "billing|delivery", datetime.date(2026, 3, 1), 3],
    ['It says "shipped"\nbut', "delivery", "billing|delivery", None, 2.5],
    ["Füße 🙂", "billing", "billing|delivery", None, None],
]
OPTIONS = ("billing", "delivery")
EXAMPLES = tuple(Example(text, label, OPTIONS) for text, label, *_ in ROWS)


def excel(path: Path, rows: list[list[Any]]) -> Path:
    book = openpyxl.Workbook()
    for row in rows:
        book.worksheets[0].append(row)
    book.create_sheet("another").append(["input"])
    book.save(path)
    return path


def parquet_file(path: Path, rows: list[list[Any]]) -> Path:
    columns = {name: [row[i] for row in rows[1:]] for i, name in enumerate(rows[0])}
    parquet.write_table(pyarrow.table(columns), path)
    return path


KINDS = {"xlsx": excel, "parquet": parquet_file}
Write = Callable[[Path, list[list[Any]]], Path]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_table(tmp_path: Path, kind: str) -> None:
    path = KINDS[kind](tmp_path / f"x.{kind.upper() if kind == 'xlsx' else kind}", [HEADER, *ROWS])
    assert read_examples(path) == EXAMPLES
    unit, first = ("line", 2) if kind == "xlsx" else ("row", 1)
    places = [f"{path.name} {unit} {number}" for number in range(first, first + 3)]
    assert [place for place, _ in examples_by_line(path)] == places
    found = list(rows_by_line(path))
    assert [query for *_, query in found] == [Query(text, OPTIONS) for text, *_ in ROWS]
    assert [(row["date"], row["n"]) for _, row, _ in found] == [("2026-03-01", "3"), ("", "2.5"), ("", "")]
    swapped = [query.input for _, query in queries_by_line(path, Columns(input="output"))]
    assert swapped == ["billing", "delivery", "billing"]


def test_cases_have_a_column_for_each_question(tmp_path: Path) -> None:
    question = TypedQuestion(Question("urgent", "predicate", "Is it?", ("yes", "no")), (True, False))
    rows = [["input", "urgent"], ["a", True], ["b", False]]
    for kind, write in KINDS.items():
        path = write(tmp_path / f"x.{kind}", rows)
        assert [(text, given) for _, text, given in cases_by_line(path, [question])] == [
            ("a", {"urgent": True}),
            ("b", {"urgent": False}),
        ]


def test_options_may_be_lists_in_parquet(tmp_path: Path) -> None:
    rows = [["input", "output", "options"], ["a", "x|y", ["x|y", "z"]]]
    assert read_examples(parquet_file(tmp_path / "x.parquet", rows)) == (Example("a", "x|y", ("x|y", "z")),)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_is_one_error_with_its_place(tmp_path: Path, kind: str) -> None:
    write: Write = KINDS[kind]
    path = tmp_path / f"x.{kind}"
    for rows, message in (
        ([["text", "output"], ["a", "b"]], "no column `input`: its columns are 'text', 'output'"),
        ([["input", "output"], ["a", "b"], [None, None], ["c", "d"]], "is an empty row: delete it"),
        ([["input", "output", "options"], ["a", "b", "b"]], "`options` is 'b', one option"),
        ([["input", "output"]], "no rows"),
    ):
        with pytest.raises(AbmllError, match=message) as raised:
            read_examples(write(path, rows))
        assert str(raised.value).startswith(f"x.{kind}")
    assert len(read_examples(write(path, [["input", "output"], ["a", "b"], [None, None]]))) == 1
    whole = path.read_bytes()
    for content in (b"input,output\na,b\n", b"", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(AbmllError, match=rf"x.{kind} (is no |is empty)"):
            read_examples(path)
    path.unlink()
    with pytest.raises(AbmllError, match="cannot be read: No such file"):
        read_examples(path)


@pytest.mark.parametrize(("kind", "library"), [("xlsx", "openpyxl"), ("parquet", "pyarrow")])
def test_without_the_extra_the_error_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, library: str
) -> None:
    path = KINDS[kind](tmp_path / f"x.{kind}", [HEADER, *ROWS])
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(AbmllError, match=r"x\.\w+ needs the extra tables: pip install"):
        read_examples(path)
