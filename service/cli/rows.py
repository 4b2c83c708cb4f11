"""Command-line arguments that become rows: labelled examples, inputs, and the number of samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from abmll.errors import AbmllError
from abmll.text.files import SUFFIXES, USUAL, Columns, examples_by_line, queries_by_line
from abmll.text.tasks import Example, Query, check_example, check_options, check_support
from model_store.terminal import shown
from service.cli.output import err
from service.schemas.fields import Samples

Options: TypeAlias = Annotated[
    list[str] | None, typer.Option("--option", "-o", help="One option to choose from; repeat it.")
]


InputColumn: TypeAlias = Annotated[
    str, typer.Option(help="Column, or field of JSON Lines, that holds the texts.")
]
OutputColumn: TypeAlias = Annotated[
    str, typer.Option(help="Column, or field of JSON Lines, that holds the labels.")
]
InferOptions: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--infer-options", help="Take the different labels as options, where rows and --option give none."
    ),
]


def is_file(text: str) -> bool:
    """Return whether `text` names a file of rows, which need not exist, and not an adapter."""
    path = Path(text)
    return path.suffix.lower() in SUFFIXES or path.is_file()


def read_support(
    path: Path, options: list[str] | None, columns: Columns = USUAL, *, infer: bool = False
) -> tuple[Example, ...]:
    """Read labelled examples that can be adapted to. `options` apply to rows without their own.

    With `infer`, those are the different labels, if no row has its own. Without, a warning is
    printed where labels repeat as those of classes do. Raises `AbmllError` with the place in the
    file.
    """
    found = list(examples_by_line(path, columns))
    if not options and not any(read.options for _, read in found):
        options = _labels(path, [read.output for _, read in found], infer=infer)
    examples = []
    for place, read in found:
        example = replace(read, options=read.options or tuple(options or ()))
        with _at(place):
            check_example(example)
        examples.append(example)
    with _at(path.name):
        check_support(examples)
    return tuple(examples)


def _labels(path: Path, outputs: list[str], *, infer: bool) -> list[str] | None:
    """Return the different outputs as options, if they are to be inferred; else warn if they
    repeat.
    """
    labels = list(dict.fromkeys(outputs))
    repeat = 2 <= len(labels) <= len(outputs) // 2
    if infer:
        if len(labels) < 2 or len(labels) == len(outputs):
            raise AbmllError(
                f"{path.name} has {len(labels)} different labels in {len(outputs)} rows, from which no options "
                "can be inferred: give them by --option"
            )
        return labels
    if repeat:
        names = ", ".join(repr(label if len(label) <= 40 else f"{label[:39]}…") for label in labels[:8])
        err.print(
            f"[yellow]warning:[/] {shown(path.name)} has {len(labels)} different labels in {len(outputs)} rows "
            f"({shown(names)}{', ...' if len(labels) > 8 else ''}) and no options, so any text may be the answer. "
            "If they are all that there are, give --infer-options",
            highlight=False,
            soft_wrap=True,
        )
    return None


def read_queries(path: Path, options: list[str] | None, columns: Columns = USUAL) -> tuple[Query, ...]:
    """Read the inputs to answer. `options` apply to rows without their own.

    Raises `AbmllError` with the place in the file.
    """
    queries = []
    for place, read in queries_by_line(path, columns):
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
