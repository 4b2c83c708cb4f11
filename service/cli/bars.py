"""Probabilities as bars of characters, for people at a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from rich.console import Console

WIDTH = 20
_EIGHTHS = " ▏▎▍▌▋▊▉█"
Bar: TypeAlias = Callable[[float], str]
"""Draws a probability as `WIDTH` characters."""


def bar_for(console: Console) -> Bar | None:
    """Return what draws bars on this console; None where it is no terminal.

    Blocks are in eighths of a character where the encoding has them, else whole ones of ASCII.
    """
    if not console.is_terminal:
        return None
    try:
        _EIGHTHS.encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return of_hashes
    return of_blocks


def of_blocks(probability: float) -> str:
    """Draw a bar in eighths of a character."""
    whole, rest = divmod(round(probability * WIDTH * 8), 8)
    return (_EIGHTHS[-1] * whole + _EIGHTHS[rest]).rstrip(" ").ljust(WIDTH)


def of_hashes(probability: float) -> str:
    """Draw a bar in ASCII."""
    return ("#" * round(probability * WIDTH)).ljust(WIDTH, ".")


def bar_lines(bar: Bar, rows: Sequence[tuple[str, float]]) -> list[str]:
    """Return a line for each named probability, in columns."""
    longest = max((len(name) for name, _ in rows), default=0)
    return [f"{name.ljust(longest)} {bar(probability)} {probability:.2f}" for name, probability in rows]
