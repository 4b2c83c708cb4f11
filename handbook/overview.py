"""`llms.txt`: every page with its first sentence, in the order of the site's navigation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent


class _Loader(yaml.SafeLoader):
    """Reads `mkdocs.yml`, whose Python names are for MkDocs."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def navigation() -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the parts of the site with the titles and paths of their pages."""
    parts: list[Any] = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), _Loader)["nav"]  # noqa: S506
    return [
        (name, list(_pages(rows)) if isinstance(rows, list) else [(name, rows)])
        for part in parts
        for name, rows in part.items()
    ]


def _pages(rows: list[Any]) -> Iterator[tuple[str, str]]:
    for row in rows:
        for name, found in row.items():
            yield from _pages(found) if isinstance(found, list) else [(name, found)]


def llms_text() -> str:
    """Return the overview for programs that read the documentation."""
    lines = [
        "# ABMLL Serve",
        "",
        "> A small language model learns a task from a few labelled examples, answers new inputs with a",
        "> probability, and abstains where it is not sure enough. It runs on your machine, behind HTTP.",
        "",
        "Each page is Markdown. SKILL.md at the top of the repository says how an agent uses the service.",
    ]
    for part, pages in navigation():
        lines += ["", f"## {part}", ""]
        lines += [f"- [{name}]({path}): {first_sentence(ROOT / 'docs' / path)}" for name, path in pages]
    return "\n".join(lines) + "\n"


def first_sentence(path: Path) -> str:
    """Return the first sentence of a page's text, without links."""
    text = re.sub(r"<!--.*?-->", "", path.read_text("utf-8"), flags=re.DOTALL)
    blocks = (block.strip() for block in text.split("\n\n"))
    block = next(block for block in blocks if block and not block.startswith(("#", "!", "|", "```")))
    if block.startswith("This page is made from"):
        block = text.split("\n\n")[2]
    sentence = re.split(r"(?<=[.:])\s", " ".join(block.split()))[0].rstrip(":")
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", sentence)
