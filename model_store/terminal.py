"""Texts of others on a terminal: shown as they are, and never obeyed."""

from __future__ import annotations

import re

from rich.markup import escape

# What a terminal may obey or hide: control characters but tab and line feed, separators of lines
# and paragraphs, marks that turn the direction of text around, and halves of surrogate pairs.
_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    """Return console markup that shows `text` as it is, with `\\u001b` for the character ESC.

    No tag may follow it without a space between.
    """
    # `escape` doubles a backslash at the end of its text, which rich then shows twice.
    return escape(f"{visible(text)} ")[:-1]


def visible(text: str) -> str:
    """Return `text` with escapes in place of what a terminal may obey. They are escapes of JSON
    too.
    """
    return _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
