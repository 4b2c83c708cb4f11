"""Command-line arguments that become rows: labelled examples, inputs, and the number of samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from abmll.errors import AbmllError
from abmll.text.files import read_examples, read_rows
from abmll.text.tasks import Example, Query
from service.schemas.fields import Samples

Options: TypeAlias = Annotated[
    list[str] | None, typer.Option("--option", "-o", help="One option to choose from; repeat it.")
]


def read_support(path: Path, options: list[str] | None) -> tuple[Example, ...]:
    """Read labelled examples. `options` apply to rows without their own. Raises `AbmllError`."""
    return tuple(replace(e, options=e.options or tuple(options or ())) for e in read_examples(path))


def read_queries(path: Path, options: list[str] | None) -> tuple[Query, ...]:
    """Read the inputs to answer. `options` apply to rows without their own. Raises `AbmllError`."""
    queries = []
    for number, row in enumerate(read_rows(path), start=1):
        if not isinstance(row.get("input"), str):
            raise AbmllError(f"{path.name} row {number} needs the text `input`")
        queries.append(Query(row["input"], tuple(row.get("options") or options or ())))
    return tuple(queries)


def parse_samples(text: str) -> Samples:
    """Parse the value of `--samples`. Raises `BadParameter` unless it is `auto` or 0 to 64."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) > 64:
        raise typer.BadParameter("--samples is a number from 0 to 64, or auto")
    return int(text)
