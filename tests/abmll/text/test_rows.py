"""Rows of a file that is read line by line are those that are read at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from abmll.errors import AbmllError
from abmll.text.files import queries_by_line, rows_by_line, separator_of

FILES = {
    "a.csv": 'sep=;\r\n"input";options;id\r\n"one; ""two""\r\nthree";yes|no;1\r\nfour;;2\r\n',
    "b.tsv": 'input\tid\none "quoted"\t1\ntwo\t2\n\x1a',
    "c.jsonl": '\n{"input": "a", "id": 1}\r\n\ufeff{"input": "b", "options": ["x", "y"]}',
    "d.csv": "\n\ninput, id\nx, 1\n",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", FILES)
def test_line_by_line_gives_the_same_rows_and_places(tmp_path: Path, name: str, encoding: str) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name].encode(encoding))
    assert [(place, query) for place, _, query in rows_by_line(path)] == list(queries_by_line(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", b"input\nfine\n\xe9 not\n"),
        ("x.csv", b"input\r\nfine\r\n\0\r\n"),
        ("x.csv", b"input\rfine\rone\x96\r"),
        ("x.csv", b"input\r\nfine\r\none\x96\r\n"),
        ("x.csv", b"text\nfine\n"),
        ("x.csv", b'input\n"open\n'),
        ("x.csv", b"PK\x03\x04"),
        ("x.jsonl", b'{"input": "a"}\n{"input": 1}\n'),
        ("x.jsonl", b'{"input": "\xc3"}\n'),
        ("x.xlsx", b"input"),
    ],
)
def test_errors_are_the_same(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    messages = []
    for read in (rows_by_line, queries_by_line):
        with pytest.raises(AbmllError) as raised:
            list(read(path))
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("name", "separator"), [("a.csv", ";"), ("b.tsv", ","), ("c.jsonl", ","), ("d.csv", ",")]
)
def test_the_separator_is_that_of_the_header(tmp_path: Path, name: str, separator: str) -> None:
    path = tmp_path / name
    path.write_text(FILES[name])
    assert separator_of(path) == separator


def test_numbers_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(
        json.dumps({"input": "a", "id": 2**70}) + "\n" + '{"input": "b", "id": %s}' % ("9" * 5000)
    )
    (_, first, _), (_, second, _) = rows_by_line(path)
    assert (first["id"], second["id"]) == (2**70, float("inf"))
