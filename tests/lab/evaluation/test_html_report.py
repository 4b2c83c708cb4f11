"""`report.html` has all of `results.md` and the plots, and needs nothing else."""

from __future__ import annotations

import base64
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

from lab.evaluation.html_report import plot_name, write_html
from tests.architecture import ROOT

STUDY = ROOT / "benchmarks/results/seeds"


class Reader(HTMLParser):
    """The cells, texts and addresses of a page; an element that is not closed is an error."""

    VOID = frozenset({"meta", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in {"src", "href", "srcset"}]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in {"td", "th"}:
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


def test_a_study_of_this_repository_as_one_page(tmp_path: Path) -> None:
    pictures = sorted(STUDY.glob("*.png"))
    for path in [STUDY / "results.md", *pictures]:
        shutil.copy(path, tmp_path)
    page = write_html(tmp_path).read_text("utf-8")
    found = Reader()
    found.feed(page)
    assert found.open == []
    lines = [line for line in (STUDY / "results.md").read_text("utf-8").splitlines() if line.startswith("|")]
    cells = [
        cell.strip().replace("**", "")
        for line in lines
        if not line.startswith("|---")
        for cell in line.strip("|").split("|")
    ]
    assert found.cells == cells
    assert len(cells) > 1000
    assert all(address.startswith("data:image/png;base64,") for address in found.addresses)
    shown = {base64.b64decode(address.partition(",")[2]) for address in found.addresses}
    assert shown == {path.read_bytes() for path in pictures}
    assert len(shown) == 6
    assert not {"script", "link", "iframe"} & set(found.tags)
    assert not re.search(r"url\(|@import", page)


def test_names_are_texts_and_missing_plots_are_left_out(tmp_path: Path) -> None:
    (tmp_path / plot_name("reliability", "a/b <c>", "4")).write_bytes(b"png")
    page = '# Evaluation <script>\n\n## a/b <c>, k = 4\n\n| method |\n|---|\n| <b>x |\n\n```json\n{"a": "<"}\n```\n'
    (tmp_path / "results.md").write_text(page)
    text = write_html(tmp_path).read_text()
    found = Reader()
    found.feed(text)
    assert "script" not in found.tags
    assert found.cells == ["method", "<b>x"]
    assert found.addresses == ["data:image/png;base64,cG5n"]
    assert "{&quot;a&quot;: &quot;&lt;&quot;}" in text
