"""Lines of prose: at most 100 columns, in the pages that people write.

`python -m handbook.lines` breaks the paragraphs and list items that have a longer one. Tables,
code, headings and pictures stay, and so does an address that has no room in a line. The README
stays too, which is held to 120 lines instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 100
_FENCE = re.compile(r" *(```|~~~)")
_ITEM = re.compile(r" *(?:[-*+]|\d+\.) +")
_VERBATIM = re.compile(r"[|#]|<!--|!\[|!!!")
_NOT_FIRST = re.compile(r"[-+*>|]|#+|\d+[.)]")
"""Words that mean something else at the beginning of a line."""


def pages() -> list[Path]:
    """Return the pages of `docs` that people write, and the map for those who work on it."""
    return [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def wrap(text: str) -> str:
    """Return a page with its long paragraphs and items in lines of at most `COLUMNS`."""
    made: list[str] = []
    block: list[str] = []
    closing: str | None = None
    for line in text.split("\n"):
        fence = _FENCE.match(line)
        verbatim = closing or fence or not line.strip() or _VERBATIM.match(line.lstrip())
        if verbatim or _ITEM.match(line) or (not block and line.startswith("    ")):
            made += _filled(block)
            block = []
        if verbatim or (not block and line.startswith("    ") and not _ITEM.match(line)):
            made.append(line)
        else:
            block.append(line)
        if closing:
            closing = None if closing in line else closing
        elif fence:
            closing = fence.group(1)
        elif line.lstrip().startswith("<!--") and "-->" not in line:
            closing = "-->"
    return "\n".join([*made, *_filled(block)])


def _filled(block: list[str]) -> list[str]:
    """Return the lines of one paragraph or item, in new ones where one is too long."""
    if all(len(line) <= COLUMNS for line in block) or any(line.endswith(("  ", "\\")) for line in block):
        return block
    item = _ITEM.match(block[0])
    first = item.group() if item else re.match(" *", block[0])[0]  # type: ignore[index]
    lines, margin = [first], " " * len(first)
    for word in _words(" ".join(line.strip() for line in block)[len(first.lstrip()) :]):
        full = f"{lines[-1]} {word}" if lines[-1].strip() and lines[-1] != first else lines[-1] + word
        if len(full) <= COLUMNS or lines[-1] in {first, margin}:
            lines[-1] = full
        else:
            lines.append(margin + word)
    return lines


def _words(text: str) -> Iterator[str]:
    """Yield what no line breaks: words, code with its blanks, and what may not begin a line."""
    word = ""
    for part in text.split():
        if word and word.count("`") % 2 == 0 and not _NOT_FIRST.fullmatch(part):
            yield word
            word = part
        else:
            word = f"{word} {part}" if word else part
    if word:
        yield word


if __name__ == "__main__":
    for page in pages():
        text = page.read_text("utf-8")
        if (found := wrap(text)) != text:
            page.write_text(found, "utf-8")
            print(page.relative_to(ROOT))
