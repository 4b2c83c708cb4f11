"""The generated pages: a path below `docs`, and what makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from handbook.command_page import command_page
from handbook.errors_page import errors_page
from handbook.http_pages import http_page, limits_page, objects_page
from handbook.overview import llms_text
from handbook.python_page import python_page
from handbook.settings_page import settings_page
from handbook.yaml_page import yaml_page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES: Mapping[str, Callable[[], str]] = {
    "reference/http.md": http_page,
    "reference/http-objects.md": objects_page,
    "reference/errors.md": errors_page,
    "reference/settings.md": settings_page,
    "reference/limits.md": limits_page,
    "reference/commands.md": command_page,
    "reference/python.md": python_page,
    "reference/yaml.md": yaml_page,
    # Last, since it reads the first lines of the others.
    "llms.txt": llms_text,
}


def write_pages() -> None:
    """Write every generated page."""
    for path, made in PAGES.items():
        (DOCS / path).write_text(made(), "utf-8")
