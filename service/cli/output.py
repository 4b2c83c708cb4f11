"""Where the commands write: answers to standard output, errors and progress to standard error."""

from __future__ import annotations

import codecs
import io
import json
import re
import sys
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console, RenderableType
from rich.markup import escape

out = Console(emoji=False)
err = Console(stderr=True, emoji=False)

# What a terminal may obey or hide: control characters but tab and line feed, separators of lines
# and paragraphs, marks that turn the direction of text around, and halves of surrogate pairs.
_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def escape_what_cannot_be_encoded() -> None:
    """Make standard output write `\\u00e9` for an é that its encoding lacks, and raise no error.

    Terminals and pipes outside of UTF-8 are those of Windows, and of `LC_ALL` or `PYTHONIOENCODING`.
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
        sys.stdout.write(_visible(json.dumps(answer, ensure_ascii=False)) + "\n")
    else:
        out.print(table)


def shown(text: str) -> str:
    """Return console markup that shows `text` as it is, with `\\u001b` for the character ESC.

    No tag may follow it without a space between.
    """
    # `escape` doubles a backslash at the end of its text, which rich then shows twice.
    return escape(f"{_visible(text)} ")[:-1]


def _visible(text: str) -> str:
    """Return `text` with escapes in place of what a terminal may obey. They are escapes of JSON too."""
    return _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
