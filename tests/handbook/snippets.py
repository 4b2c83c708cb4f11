"""The fenced blocks of the pages, and which of them run where."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"(?:^<!-- ([^\n]*) -->\n+)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_UNRUN = "not run here: "
_REFUSED = "refused here: "

ELSEWHERE = {
    **{("README.md", language): "tests/e2e/test_readme.py" for language in ("js", "python", "sh")},
    ("client.md", "python"): "tests/client/test_client_docs.py",
    ("inbox.md", "python"): "tests/client/test_question_docs.py",
    ("inbox.md", "sh"): "tests/client/test_question_docs.py",
    ("questions.md", "python"): "tests/client/test_question_docs.py",
    ("interfaces-classify.md", "python"): "tests/service/api/test_classify.py",
    ("interfaces-oip.md", "python"): "tests/service/api/test_oip.py",
    ("interfaces-openai.md", "python"): "tests/service/api/test_openai.py",
    ("javascript.md", "js"): "tests/service/playground/test_javascript_page.py",
    ("peft.md", "python"): "tests/model_store/peft/test_exchange.py",
    ("ticket-triage.md", "python"): "tests/client/test_client_docs.py",
}
"""Blocks by page and language that a test of their own runs or checks more closely."""


@dataclass(frozen=True)
class Snippet:
    """A fenced block of a page.

    `unrun` says why it does not run here, and `refused` is the code with which a server with the
    fake model refuses it; both are comments in front of the block, and empty where there is none.
    """

    page: str
    language: str
    text: str
    unrun: str
    refused: str

    @property
    def elsewhere(self) -> str | None:
        """The test that runs it, where that is not this package."""
        return ELSEWHERE.get((self.page, self.language))


def snippets(language: str) -> list[Snippet]:
    """Return every block of the language, in the README and in the pages of docs/."""
    return [
        Snippet(path.name, found[2], found[3], *_comments(found[1] or ""))
        for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
        for found in _FENCE.finditer(path.read_text("utf-8"))
        if found[2] == language
    ]


def _comments(comment: str) -> tuple[str, str]:
    marks = (_UNRUN, _REFUSED)
    unrun, refused = (comment.removeprefix(mark) if comment.startswith(mark) else "" for mark in marks)
    return unrun, refused
