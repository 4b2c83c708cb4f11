"""Prose has lines of at most 100 columns, and breaking them changes nothing that is shown."""

from __future__ import annotations

from pathlib import Path

import markdown
import pytest

from handbook.lines import COLUMNS, pages, wrap

LONG = " ".join(["word"] * 30)


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_lines_of_prose_are_short(page: Path) -> None:
    text = page.read_text("utf-8")
    assert wrap(text) == text, "run: python -m handbook.lines"


def test_paragraphs_and_items_are_broken_and_shown_the_same() -> None:
    text = f"# {LONG}\n\n{LONG}\nmore.\n\n1. {LONG}\n2. short\n   - {LONG}\n\n**End.** `a b` {LONG}\n"
    made = wrap(text)
    assert made != text
    assert wrap(made) == made
    assert all(len(line) <= COLUMNS for line in made.splitlines() if not line.startswith("#"))
    assert _shown(made) == _shown(text)


@pytest.mark.parametrize(
    "text",
    [
        f"| {LONG} |\n|---|\n",
        f"```text\n{LONG}\n\n{LONG}\n```\n",
        f"<!-- {LONG}\n{LONG} -->\n",
        f"![{LONG}](picture.png)\n",
        f"    {LONG}\n",
        f"short\n\n    {LONG}\n",
        f"{'x' * 130}\n",
        f"- {'x' * 130}\n  word\n",
    ],
)
def test_what_is_no_prose_stays(text: str) -> None:
    assert wrap(text) == text


def test_code_and_signs_stay_with_the_word_before() -> None:
    filler = "x" * 92
    assert wrap(f"{filler} ab `two words` end\n") == f"{filler} ab\n`two words` end\n"
    assert wrap(f"{filler} abcdefg - end of it\n") == f"{filler}\nabcdefg - end of it\n"


def _shown(text: str) -> str:
    return " ".join(markdown.markdown(text, extensions=["tables", "sane_lists"]).split())
