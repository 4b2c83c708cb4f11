"""Command-line arguments that become rows: labelled examples, inputs, and the number of samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from abmll.errors import AbmllError
from abmll.text.files import SUFFIXES, examples_by_line, queries_by_line
from abmll.text.tasks import Example, Query, check_example, check_options, check_support
from service.schemas.fields import Samples

Options: TypeAlias = Annotated[
    list[str] | None, typer.Option("--option", "-o", help="One option to choose from; repeat it.")
]


def is_file(text: str) -> bool:
    """Return whether `text` names a file of rows, which need not exist, and not an adapter."""
    path = Path(text)
    return path.suffix.lower() in SUFFIXES or path.is_file()


def read_support(path: Path, options: list[str] | None) -> tuple[Example, ...]:
    """Read labelled examples that can be adapted to. `options` apply to rows without their own.

    Raises `AbmllError` with the place in the file.
    """
    examples = []
    for place, read in examples_by_line(path):
        example = replace(read, options=read.options or tuple(options or ()))
        with _at(place):
            check_example(example)
        examples.append(example)
    with _at(path.name):
        check_support(examples)
    return tuple(examples)


def read_queries(path: Path, options: list[str] | None) -> tuple[Query, ...]:
    """Read the inputs to answer. `options` apply to rows without their own.

    Raises `AbmllError` with the place in the file.
    """
    queries = []
    for place, read in queries_by_line(path):
        query = replace(read, options=read.options or tuple(options or ()))
        with _at(place):
            if query.options:
                check_options(query.options)
        queries.append(query)
    return tuple(queries)


@contextmanager
def _at(place: str) -> Iterator[None]:
    try:
        yield
    except AbmllError as error:
        raise AbmllError(f"{place}: {error}") from error


def parse_samples(text: str) -> Samples:
    """Parse the value of `--samples`. Raises `BadParameter` unless it is `auto` or 0 to 64."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or len(text) > 2 or int(text) > 64:
        raise typer.BadParameter("--samples is a number from 0 to 64, or auto")
    return int(text)
