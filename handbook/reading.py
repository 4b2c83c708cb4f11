"""Reading ease of prose: sentences, their words, and Flesch's score.

`python -m handbook.reading` prints the score of each page.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONGEST_SENTENCE = 35
_NO_PROSE = re.compile(r"```.*?```|<!--.*?-->|^ *\|.*?$|^#.*?$|^ {4}\S.*?$", re.DOTALL | re.MULTILINE)
_ITEM = re.compile(r"^ *(?:[-*]|\d+\.) ", re.MULTILINE)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_END = re.compile(r"(?<=[.:?!;])[*_\")]*\s+")


def prose_pages() -> list[Path]:
    """Return the README and the pages of `docs` that people write."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def sentences(text: str) -> list[str]:
    """Return the sentences of a page's prose, without code, tables, headings and addresses.

    A colon and a semicolon end a sentence too: what follows them stands by itself.
    """
    prose = _LINK.sub(r"\1", _ITEM.sub("\n\n", _NO_PROSE.sub("\n\n", text)))
    paragraphs = (" ".join(block.split()) for block in re.split(r"\n\s*\n", prose))
    return [sentence for block in paragraphs for sentence in _END.split(block) if sentence]


def syllables(word: str) -> int:
    """Estimate the syllables of an English word by its groups of vowels, without a silent e."""
    word = re.sub(r"[^a-z]", "", word.lower())
    silent = word.endswith("e") and not word.endswith(("le", "ee", "ie"))
    return max(1, len(re.findall(r"[aeiouy]+", word)) - silent)


def flesch(text: str) -> float:
    """Return Flesch's reading ease of a page's prose: 206.8 - 1.015 words a sentence - 84.6
    syllables a word.

    Code and what is no word are left out. 60 is plain English, 30 a scientific paper. NaN without
    prose.
    """
    found = [re.findall(r"[A-Za-z][A-Za-z'-]*", re.sub(r"`[^`]*`", "", line)) for line in sentences(text)]
    counted = [words for words in found if words]
    words = [word for line in counted for word in line]
    if not words:
        return float("nan")
    a_word = sum(map(syllables, words)) / len(words)
    return 206.835 - 1.015 * len(words) / len(counted) - 84.6 * a_word


if __name__ == "__main__":
    for page in prose_pages():
        print(f"{flesch(page.read_text('utf-8')):5.1f}  {page.relative_to(ROOT)}")
