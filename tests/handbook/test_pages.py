"""The generated pages are current, and say what the code says."""

from __future__ import annotations

import re

import pytest

from handbook.markdown import anchor
from handbook.overview import navigation
from handbook.pages import DOCS, PAGES
from service.errors import QueueFullError, ServiceError
from service.settings import Settings


@pytest.mark.parametrize("path", PAGES)
def test_a_generated_page_is_current(path: str) -> None:
    assert (DOCS / path).read_text("utf-8") == PAGES[path](), "run python -m handbook"


def text(name: str) -> str:
    return (DOCS / "reference" / name).read_text("utf-8")


def test_no_page_names_a_place_of_this_machine() -> None:
    for path in PAGES:
        assert not re.search(r"/(home|root|tmp|work|Users)/", (DOCS / path).read_text("utf-8")), path


def test_the_page_of_errors_has_every_code_with_its_status() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", text("errors.md"), re.MULTILINE))

    def codes(error: type[ServiceError]) -> set[tuple[str, str]]:
        below = {pair for sub in error.__subclasses__() for pair in codes(sub)}
        return below | {(error.code, str(error.status))}

    never_answered = {("wrong_fields", "422")}  # TypeSafe's surface answers each wrong field by itself
    assert set(rows.items()) == codes(ServiceError) - never_answered
    assert f"| `{QueueFullError.code}` | 429 | yes |" in text("errors.md")


def test_the_page_of_settings_has_every_setting_once() -> None:
    named = re.findall(r"^\| `--([\w-]+)` \| `ABMLL_(\w+)`", text("settings.md"), re.MULTILINE)
    assert sorted(variable.lower() for _, variable in named) == sorted(Settings.model_fields)
    assert all(option.replace("-", "_") == variable.lower() for option, variable in named)


def test_links_between_generated_pages_have_their_anchors() -> None:
    """MkDocs checks anchors of the site; readers of the repository have GitHub's, which these are."""
    anchors = {
        name.rpartition("/")[2]: {anchor(h) for h in re.findall(r"^#+ (.*)$", (DOCS / name).read_text("utf-8"), re.MULTILINE)}
        for name in PAGES
    }  # fmt: skip
    for name in PAGES:
        if name.endswith(".md"):
            for page, place in re.findall(r"\]\(([\w-]*\.md)?#([\w-]+)\)", (DOCS / name).read_text("utf-8")):
                target = page or name.rpartition("/")[2]
                if target in anchors:
                    assert place in anchors[target], f"{name}: {target}#{place}"


def test_every_page_is_in_the_navigation_once() -> None:
    listed = [path for _, pages in navigation() for _, path in pages]
    assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_the_overview_links_every_page() -> None:
    overview = (DOCS / "llms.txt").read_text("utf-8")
    assert re.findall(r"\]\(([\w/-]+\.md)\)", overview) == [p for _, pages in navigation() for _, p in pages]
