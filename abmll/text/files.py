"""Readers of labelled rows: JSON Lines, CSV and TSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from abmll.errors import AbmllError
from abmll.text.tasks import Example, Task


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a `.jsonl`, `.csv` or `.tsv` file as dictionaries.

    In CSV and TSV, `options` is one cell with the options separated by `|`.
    Raises `AbmllError` with the file's name for another kind of file, and with the line's number
    for a line that is not a JSON object.
    """
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise AbmllError(f"{path.name} line {number} is not JSON: {error.msg}") from error
                if not isinstance(row, dict):
                    raise AbmllError(f"{path.name} line {number} is not a JSON object")
                yield row
        elif path.suffix in {".csv", ".tsv"}:
            for record in csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","):
                cell = record.get("options") or ""
                yield {**record, "options": [option.strip() for option in cell.split("|") if option.strip()]}
        else:
            raise AbmllError(f"{path.name}: expected .jsonl, .csv or .tsv")


def read_examples(path: Path) -> tuple[Example, ...]:
    """Return the labelled examples of a file.

    Raises `AbmllError` as `read_rows` does, and where a row lacks `input` or `output`.
    """
    examples = []
    for number, row in enumerate(read_rows(path), start=1):
        if not isinstance(row.get("input"), str) or not isinstance(row.get("output"), str):
            raise AbmllError(f"{path.name} row {number} needs the texts `input` and `output`")
        examples.append(Example(row["input"], row["output"], tuple(row.get("options") or ())))
    return tuple(examples)


def read_task(folder: Path) -> Task:
    """Return the task in `folder`, from its `train.jsonl` and `test.jsonl`."""
    return Task(folder.name, read_examples(folder / "train.jsonl"), read_examples(folder / "test.jsonl"))
