"""The site builds without a warning, asks nobody else for anything, and has its pages as Markdown."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from handbook.hooks import COPIED
from handbook.overview import ROOT, navigation


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=root,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},  # a notice of the theme's end of life, no warning
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Requests(HTMLParser):
    """What a page makes a browser fetch, and what it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.linked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "a":
            self.linked.append(found.get("href") or "")
        elif tag == "link" and found.get("rel") != "canonical":
            self.fetched.append(found.get("href") or "")
        elif found.get("src"):
            self.fetched.append(found["src"] or "")


def read(path: Path) -> Requests:
    page = Requests()
    page.feed(path.read_text("utf-8"))
    return page


def test_no_page_makes_a_browser_ask_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    fetched = {address for path in pages for address in read(path).fetched}
    assert any(address.endswith(".css") for address in fetched)
    assert [address for address in fetched if re.match(r"\w+:|//", address)] == []
    for sheet in (site / "assets/stylesheets").rglob("*.css"):
        assert re.findall(r"url\([\"']?(?:https?:)?//[^)]*", sheet.read_text("utf-8")) == [], sheet.name


def test_each_page_has_its_markdown_beside_it_and_says_so(site: Path) -> None:
    for path in (path for _, pages in navigation() for _, path in pages):
        assert (site / path).read_text("utf-8").startswith("# "), path
        page = (site / path).with_suffix(".html").read_text("utf-8")
        assert f'<link rel="alternate" type="text/markdown" href="{Path(path).name}">' in page
    assert (site / "llms.txt").read_text("utf-8").startswith("# ABMLL Serve")


def test_tables_and_emphasis_come_out_as_such(site: Path) -> None:
    """GitHub and MkDocs indent blocks in lists by different widths; four columns suit both."""
    for path in site.rglob("*.html"):
        text = re.sub(r"<(pre|code)\b.*?</\1>", "", path.read_text("utf-8"), flags=re.DOTALL)
        assert "|---|" not in text, path.name
        assert re.findall(r"\*\*\w[^*<]{2,40}\*\*|\]\([\w#./-]+\)", text) == [], path.name


def test_files_of_the_repository_come_along(site: Path) -> None:
    """Links of the pages that lead out of docs/ lead to copies, on the page and in its Markdown."""
    links = [link for link in read(site / "evaluation.html").linked if link.startswith(COPIED[1:])]
    assert "repository/benchmarks/results/seeds/results.md" in links
    assert all((site / link.partition("#")[0]).is_file() for link in links)
    assert "](repository/benchmarks/results/seeds/results.md)" in (site / "evaluation.md").read_text("utf-8")
    assert f'"{COPIED}' not in (site / "evaluation.html").read_text("utf-8")


def test_the_build_refuses_a_dead_link_and_a_page_outside_the_navigation(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    shutil.copytree(ROOT / "handbook", tmp_path / "handbook")
    settings = (ROOT / "mkdocs.yml").read_text("utf-8").partition("nav:\n  -")[0]
    (tmp_path / "mkdocs.yml").write_text(f"{settings}nav:\n  - Home: index.md\n")
    docs = tmp_path / "docs"
    (docs / "index.md").write_text("# Home\n\n[a](other.md#nothing), [b](none.md)\n")
    (docs / "other.md").write_text("# Other\n\nText.\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert all(name in said for name in ("other.md", "none.md", "#nothing"))
