"""The glossary names what there is, and words that lost their meaning are not in the source."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.architecture import ROOT, source_files

PAGE = (ROOT / "docs/glossary.md").read_text("utf-8")
WORDS, LOST = (
    [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in part.splitlines()
        if line.startswith("|") and not line.startswith(("|---", "| word |", "| no longer |"))
    ]
    for part in PAGE.split("## Words that lost their meaning")
)

# Patterns by word of the page: of whole identifiers, of whole file names, of text in a line.
IDENTIFIERS = {
    "ask": r"Ask|Asked|ask_of",
    # A field of the wire is called `calibrator`, and stays.
    "calibrator": r"\w+_calibrators?|calibrators?_\w+|calibrators|\w*Calibrator",
    "calibration store": r"CalibrationStore",
    "crossfit": r"\w*cross_?fit|CrossFit",
    "head": r"Head|HeadPosterior|(has|with)_head",
    "reference": r"Reference",
    "scored": r"Scored",
    "told": r"_?(un)?told|told_\w+|\w+_told",
    "watch": r"[Ww]atch",
}
FILES = {
    "calibrator": r"calibrator\.py",
    "crossfit": r"cross_?fit\.py",
    "head": r"head\.py",
    "kept": r"kept\.py",
    "memory.py": r"memory\.py",
    "reference": r"reference\.py",
    "translate.py": r"translate\.py",
    "watch": r"watch\.py",
}
TEXTS = {
    "none of its business": r"none of (its|their|his|her|our) business",
    "that of a": r'"""(That|Those) (of|which) ',
}
TESTS = {f"tests.{p.relative_to(ROOT / 'tests').with_suffix('')}": p for p in (ROOT / "tests").rglob("*.py")}
BENCHMARKS = {f"benchmarks.{p.stem}": p for p in (ROOT / "benchmarks").glob("*.py")}
SOURCE = sorted({*source_files().values(), *TESTS.values(), *BENCHMARKS.values()} - {Path(__file__)})


@cache
def identifiers(path: Path) -> frozenset[str]:
    """Return the names that the code of a file uses.

    Names of tests are sentences and do not count.
    """
    with path.open("rb") as file:
        names = {token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.NAME}
    return frozenset(name for name in names if not name.startswith("test_"))


def uses(word: str) -> Iterator[str]:
    """Yield the places where the source still has the word."""
    for path in SOURCE:
        place = str(path.relative_to(ROOT))
        if word in FILES and re.fullmatch(FILES[word], path.name):
            yield place
        if word in IDENTIFIERS:
            yield from (
                f"{place}: {name}"
                for name in sorted(identifiers(path))
                if re.fullmatch(IDENTIFIERS[word], name)
            )
        if word in TEXTS:
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                if re.search(TEXTS[word], line):
                    yield f"{place}:{number}"


@pytest.mark.parametrize("word", [word for word, _ in LOST])
def test_words_that_lost_their_meaning_are_gone(word: str) -> None:
    assert list(uses(word)) == []


def test_the_page_and_this_test_name_the_same_words() -> None:
    lost = [word for word, _ in LOST]
    assert lost == sorted({*IDENTIFIERS, *FILES, *TEXTS})


def test_the_search_finds_what_it_is_for(tmp_path: Path) -> None:
    example = tmp_path / "example.py"
    example.write_text(
        "def test_what_is_told(): ...\nnot_told, watchful, Head = head(self.kept_calibrator)  # told\n"
    )
    found = identifiers(example)
    assert found >= {"not_told", "kept_calibrator", "Head", "watchful"}
    assert "told" not in found
    assert "test_what_is_told" not in found
    matches = {word: {n for n in found if re.fullmatch(p, n)} for word, p in IDENTIFIERS.items()}
    assert {word: names for word, names in matches.items() if names} == {
        "calibrator": {"kept_calibrator"},
        "head": {"Head"},
        "told": {"not_told"},
    }


def test_a_word_has_one_meaning_and_a_place_that_exists() -> None:
    words = [word for word, *_ in WORDS]
    assert len(words) == len(set(words)) > 50
    for word, meaning, place in WORDS:
        assert meaning[-1] not in ".;", word
        assert (ROOT / place.strip("`")).exists(), f"{word}: {place}"
