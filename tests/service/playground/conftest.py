"""A browser with the playground of a server that has a fake model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.service.conftest import Listening, Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


# No longer than a module: its event loop runs in this thread, where other tests start their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Debian's chromium, or a skip that says what is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on the path")
    with playwright.sync_playwright() as started:
        # Containers run as root, where the browser's own sandbox refuses to start.
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    with Server(tmp_path).listening() as running:
        yield running


@pytest.fixture
def open_page(browser, listening: Listening) -> Iterator[Callable[..., object]]:
    """Return a function that opens the page; at the end no page has an error or a foreign request."""
    wrong: list[str] = []
    contexts = []

    def open_page(path: str = "/playground", **options: object) -> object:
        context = browser.new_context(**{"viewport": {"width": 1400, "height": 1000}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # a machine that others use is slow
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", lambda said: wrong.append(said.text) if "Security Policy" in said.text else None)
        page.on("request", lambda sent: _note_foreign(sent.url, listening.url, wrong))
        page.goto(listening.url + path)
        page.get_by_role("heading", name="Playground").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def _note_foreign(url: str, home: str, wrong: list[str]) -> None:
    if not url.startswith((f"{home}/", "blob:", "data:")):
        wrong.append(f"foreign request: {url}")
