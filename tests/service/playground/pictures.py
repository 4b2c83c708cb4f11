"""Take the pictures of the playground for the documentation, from a running server.

    python -m tests.service.playground.pictures http://localhost:8000

Start the server with `--deadline-seconds 3600` where the CPU is slow: the check is long.

It learns from the built-in example twice, answers its inputs, checks the version and compares it
with the first. Written are `playground-light.png`, `-dark` and `-phone` in `docs/images`. The
server's name `mails` gets versions.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.service.playground.conftest import CHROMIUM

IMAGES = Path(__file__).resolve().parents[3] / "docs/images"
SIZES = {"light": (1360, 900), "dark": (1360, 900), "phone": (390, 844)}
WAIT = 900_000  # milliseconds; a CPU that others use takes minutes


def play(page: Page) -> None:
    """Play the example."""
    learn = page.get_by_role("button", name="Learn from")
    for effort in ("fast", "full"):
        page.get_by_label("Effort").select_option(effort)
        learn.click()
        page.get_by_role("row", name=f"12 {effort}").wait_for()
        page.wait_for_function("() => !document.querySelector('progress')")
    page.get_by_role("button", name="Answer 7 inputs").click()
    page.get_by_role("button", name="All are answered").wait_for()
    page.get_by_role("button", name="Check mails").click()
    page.get_by_role("list", name="Verdicts").wait_for()
    page.get_by_role("button", name="Compare on 7 inputs").click()
    page.get_by_role("region", name="Comparison").wait_for()
    page.wait_for_function("() => !document.querySelector('progress')")
    page.get_by_role("table", name="Inputs and answers").get_by_text("The page stays white").click()


def take(page: Page, kind: str) -> None:
    """Save what the page looks like."""
    width, height = SIZES[kind]
    page.emulate_media(color_scheme="dark" if kind == "dark" else "light")
    page.set_viewport_size({"width": width, "height": height})
    if kind == "phone":  # the whole page is ten screens long
        page.get_by_role("table", name="Inputs and answers").evaluate("table => table.scrollIntoView()")
    else:
        page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(400)
    page.screenshot(path=IMAGES / f"playground-{kind}.png", full_page=kind != "phone")


def main() -> None:
    """Take all pictures."""
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport=dict(zip(("width", "height"), SIZES["light"], strict=True)))
        page.set_default_timeout(WAIT)
        page.goto(f"{sys.argv[1].rstrip('/')}/playground")
        play(page)
        for kind in SIZES:
            take(page, kind)
        browser.close()


if __name__ == "__main__":
    main()
