"""Sentences of the pages are short, and their reading ease is that of plain English."""

from __future__ import annotations

from pathlib import Path

import pytest

from handbook.reading import LONGEST_SENTENCE, flesch, prose_pages, sentences, syllables

PLAIN = 60
"""Flesch's bound of plain English."""


@pytest.mark.parametrize("page", prose_pages(), ids=lambda path: path.name)
def test_a_page_is_plain_english(page: Path) -> None:
    text = page.read_text("utf-8")
    assert [found for found in sentences(text) if len(found.split()) > LONGEST_SENTENCE] == []
    assert flesch(text) >= PLAIN


def test_sentences_are_those_of_the_prose() -> None:
    page = (
        "# A title\n\nOne [link](a.md) here. Two: three;\nfour.\n\n- an item\n  goes on\n- another\n\n"
        "| a | table |\n|---|---|\n\n```sh\ncode. here.\n```\n\n<!-- a comment. -->\n\n    indented.\n"
    )
    assert sentences(page) == ["One link here.", "Two:", "three;", "four.", "an item goes on", "another"]


@pytest.mark.parametrize(
    ("word", "count"), [("cat", 1), ("table", 2), ("make", 1), ("threshold", 2), ("calibration", 4), ("be", 1)]
)  # fmt: skip
def test_syllables_are_counted_by_groups_of_vowels(word: str, count: int) -> None:
    assert syllables(word) == count


def test_the_score_is_flesch_s_formula() -> None:
    """Six words in two sentences, seven syllables: 206.835 - 1.015 * 3 - 84.6 * 7 / 6."""
    assert flesch("The cat sat. The table fell.\n") == pytest.approx(206.835 - 3.045 - 84.6 * 7 / 6)
    assert flesch("It is easy.\n") > flesch("Epistemological considerations necessitate circumspection.\n")
