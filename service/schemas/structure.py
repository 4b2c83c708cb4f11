"""JSON values of any structure."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

JsonValue: TypeAlias = Any
"""A value that JSON has: null, a boolean, a number, a text, a list, or an object."""

MAX_DEPTH = 64


def check_structure(value: JsonValue, depth: int = MAX_DEPTH) -> None:
    """Raise `ValueError` for a value that is nested too deep, or has a number that is not finite.

    `depth` is how many more lists and objects may lie in each other.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it has a number that is not finite: NaN, Infinity, or one above 1.8e308")
    if isinstance(value, dict | list):
        if depth < 1:
            raise ValueError(f"lists and objects are nested deeper than {MAX_DEPTH} levels")
        for inner in value.values() if isinstance(value, dict) else value:
            check_structure(inner, depth - 1)
