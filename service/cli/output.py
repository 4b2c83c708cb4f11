"""Where the commands write: answers to standard output, errors and progress to standard error."""

from __future__ import annotations

import codecs
import io
import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console, RenderableType

from model_store.terminal import visible

out = Console(emoji=False)
err = Console(stderr=True, emoji=False)

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def escape_what_cannot_be_encoded() -> None:
    """Make standard output write `\\u00e9` for an é that its encoding lacks, and raise no error.

    Terminals and pipes outside of UTF-8 are those of Windows, and of `LC_ALL` or
    `PYTHONIOENCODING`.
    """
    codecs.register_error("abmll_escapes", _escaped)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="abmll_escapes")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def show(answer: Mapping[str, Any], table: RenderableType, as_json: bool) -> None:
    """Print `answer` on one line of JSON if `as_json`, else its `table`."""
    if as_json:
        # Not `typer.echo`, which writes UTF-8 where the encoding is ASCII.
        sys.stdout.write(visible(json.dumps(answer, ensure_ascii=False)) + "\n")
    else:
        out.print(table)
