"""How a value of a setting is written, and the error of one that does not hold."""

from __future__ import annotations

ENV_PREFIX = "ABMLL_"
LONGEST_SECONDS = 30 * 24 * 3600.0
"""Longest time that a setting may name; timers of the system take no time of any length."""


class SettingsError(ValueError):
    """A setting that is unknown or does not hold; the message names it."""


def split(texts: str | None) -> list[str]:
    """Return the texts that are separated by commas, without those that are empty."""
    return [text.strip() for text in (texts or "").split(",") if text.strip()]


def is_empty(value: object) -> bool:
    """Return whether `value` counts as not given: None, or a text without a character to see.

    Compose files, unit files and scripts pass a variable on as an empty text where it is not set.
    """
    return value is None or (isinstance(value, str) and not value.strip())
