"""Take the pictures of the playground for the documentation, from a running server.

    python -m tests.service.playground.pictures http://localhost:8000

It learns from the built-in example, answers its inputs, labels one and learns again. Written are
`playground-light.png`, `-dark` and `-phone` in `docs/images`. The server's name `mails` gets
versions.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tests.service.playground.conftest import CHROMIUM

IMAGES = Path(__file__).resolve().parents[3] / "docs/images"
SIZES = {"light": (1360, 900), "dark": (1360, 900), "phone": (390, 844)}
WAIT = 300_000  # milliseconds; a CPU that others use takes minutes


def take(browser: Browser, url: str, kind: str) -> None:
    """Play the example, and save what the page then looks like."""
    width, height = SIZES[kind]
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme="dark" if kind == "dark" else "light",
        device_scale_factor=1,
    )
    page.set_default_timeout(WAIT)
    page.goto(f"{url}/playground")
    page.get_by_role("button", name="Learn from 12 cases").click()
    page.get_by_text("learned from").wait_for()
    page.get_by_role("button", name="Answer 7 inputs").click()
    page.get_by_role("button", name="All are answered").wait_for()
    page.get_by_role("table", name="Inputs and answers").get_by_text("The page stays white").click()
    if kind == "phone":  # the whole page is ten screens long
        page.get_by_role("table", name="Inputs and answers").evaluate("table => table.scrollIntoView()")
    else:
        page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(400)
    page.screenshot(path=IMAGES / f"playground-{kind}.png", full_page=kind != "phone")
    page.close()


def main() -> None:
    """Take all pictures."""
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for kind in SIZES:
            take(browser, sys.argv[1].rstrip("/"), kind)
        browser.close()


if __name__ == "__main__":
    main()
