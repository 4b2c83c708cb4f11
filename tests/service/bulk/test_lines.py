"""Rows of input files, line by line: memory does not grow with the file."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from service.bulk.lines import MOST_ERRORS, LineRefusedError, Place, check_file, rows

URL = "/v1/predict"
MAX_BYTES = 1 << 20


def text(custom_id: str, body: str = "{}", url: str = URL) -> str:
    return f'{{"custom_id": "{custom_id}", "method": "POST", "url": "{url}", "body": {body}}}\n'


def test_a_hundred_thousand_rows_are_checked_in_the_memory_of_a_few(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        file.writelines(text(f"row-{n}", '{"inputs": ["%s"]}' % ("x" * 100)) for n in range(100_000))
    assert path.stat().st_size > 15_000_000
    tracemalloc.start()
    found = check_file(path, URL, MAX_BYTES, 10**6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == (100_000, ())
    assert peak < 4_000_000, "16 bytes a row for the ids, twice, and a line"


def test_reading_goes_on_from_any_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + text("a") + "  \r\n" + text("é") + text("c").rstrip("\n"), "utf-8")
    whole = list(rows(path, URL, MAX_BYTES))
    assert [(row.custom_id, row.line) for row in whole] == [("a", 2), ("é", 4), ("c", 5)]
    assert whole[-1].end == path.stat().st_size
    for n, row in enumerate(whole):
        assert list(rows(path, URL, MAX_BYTES, Place(row.end, row.line))) == whole[n + 1 :]


@pytest.mark.parametrize("long", [MAX_BYTES - 80, MAX_BYTES, 3 * MAX_BYTES + 7])
@pytest.mark.parametrize("end", ["\n", ""])
def test_a_line_has_as_many_bytes_as_a_body_and_no_more(tmp_path: Path, long: int, end: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text("a") + text("b", '{"x": "%s"}' % ("y" * long)).rstrip("\n") + end)
    count, errors = check_file(path, URL, MAX_BYTES, 100)
    assert count == 2
    assert [(e.code, e.line) for e in errors] == ([] if long < MAX_BYTES - 75 else [("line_too_long", 2)])
    if errors:
        assert "max_body_bytes" in errors[0].message
        with pytest.raises(LineRefusedError):
            list(rows(path, URL, MAX_BYTES))


def test_equal_ids_are_named_by_line_and_the_first_errors_only(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(text(f"row-{n % 150}") for n in range(600)))
    count, errors = check_file(path, URL, MAX_BYTES, 1000)
    assert (count, len(errors)) == (600, MOST_ERRORS)
    assert {e.code for e in errors} == {"duplicate_custom_id"}
    assert all((e.line or 0) > 150 for e in errors)


def test_more_rows_than_a_batch_may_have_are_an_error_that_names_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(text(f"row-{n}") for n in range(5)))
    assert check_file(path, URL, MAX_BYTES, 5) == (5, ())
    _, (error,) = check_file(path, URL, MAX_BYTES, 4)
    assert (error.line, error.code) == (5, "too_many_rows")
    assert "max_batch_rows" in error.message


def test_a_bad_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"custom_id": "x" * 513, "method": "POST", "url": URL, "body": {}}))
    _, (error,) = check_file(path, URL, MAX_BYTES, 4)
    assert (error.param, error.line) == ("custom_id", 1)
