"""Structured input as one text: JSON values as short indented lines."""

from __future__ import annotations

import json
from collections.abc import Iterable

from service.schemas.structure import JsonValue

_INDENT = "  "


def text_of(value: JsonValue) -> str:
    """Return `value` as a text: a text as it is, and all else in lines as YAML has them.

    Keys and items stay in their order, and numbers are written as in JSON. The value passes
    `check_structure`.
    """
    return value if isinstance(value, str) else "\n".join(_lines(value))


def _lines(value: JsonValue) -> list[str]:
    """Return the lines of a value, not indented; there is at least one."""
    if isinstance(value, dict) and value:
        return [line for key, inner in value.items() for line in _field(key, inner)]
    if isinstance(value, list) and value:
        return [line for inner in value for line in _item(inner)]
    if isinstance(value, str) and value:
        return value.split("\n")
    return [json.dumps(value, ensure_ascii=False)]


def _field(key: str, value: JsonValue) -> Iterable[str]:
    lines = _lines(value)
    if len(lines) == 1 and not (isinstance(value, dict | list) and value):
        return [f"{key}: {lines[0]}"]
    return [f"{key}:", *(_INDENT + line for line in lines)]


def _item(value: JsonValue) -> Iterable[str]:
    first, *rest = _lines(value)
    return [f"- {first}", *(_INDENT + line for line in rest)]
