"""Markdown of generated pages: tables, paragraphs, anchors, names of types."""

from __future__ import annotations

import inspect
import re
import textwrap
import types
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

COLUMNS = 100
_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def page(title: str, source: str, *blocks: str) -> str:
    """Return a page that says what it is made from."""
    made = f"This page is made from {source} by `python -m handbook`."
    return "\n\n".join([f"# {title}", paragraph(made), *blocks]) + "\n"


def paragraph(text: str) -> str:
    """Wrap one paragraph at `COLUMNS`."""
    return textwrap.fill(" ".join(text.split()), COLUMNS, break_long_words=False, break_on_hyphens=False)


def documentation(thing: object) -> str:
    """Return the docstring of `thing`, its paragraphs wrapped and its lists as they are."""
    blocks = (inspect.getdoc(thing) or "").split("\n\n")
    return "\n\n".join(
        block if block.startswith(("- ", "    ")) else paragraph(block) for block in blocks if block
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose cells hold no line ends and no bare separators."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell(text) for text in line)} |" for line in lines)


def cell(text: str) -> str:
    """Return `text` as it stands in a cell."""
    return " ".join(text.split()).replace("|", "\\|")


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub and the site's slugs make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def code(text: object) -> str:
    """Return `text` as code, or nothing where it is empty."""
    return f"`{text}`" if f"{text}" else ""


def type_words(annotation: Any) -> str:
    """Return a type of a setting or an option in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_words(arguments[0])
    if origin is Literal:
        return ", ".join(code(argument) for argument in arguments)
    if origin in {Union, types.UnionType}:
        return " or ".join(type_words(part) for part in arguments if part is not type(None))
    if origin in {list, tuple}:
        return f"several: {type_words(arguments[0])}"
    return _WORDS.get(annotation, str(getattr(annotation, "__name__", annotation)).lower())
