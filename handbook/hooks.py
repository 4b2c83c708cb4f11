"""MkDocs' hooks: files outside docs/ come along, and each page has its Markdown beside it.

MkDocs loads this file by its path, so it imports nothing of the package.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
COPIED = "/repository/"
"""Where files of the repository lie on the site. A link begins with it until its page is known."""
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:|#|/)([^)#\s]+)(#[^)]*)?\)")

_outside: set[Path] = set()
_markdown: dict[str, str] = {}


def on_pre_build(config: Any) -> None:
    """Forget an earlier build."""
    _outside.clear()
    _markdown.clear()


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links to files of the repository lead to copies, and links to its folders be texts."""
    folder = (DOCS / page.file.src_uri).parent

    def target(found: re.Match[str]) -> str:
        text, path, _ = found.groups()
        linked = (folder / path).resolve()
        if linked.is_dir():
            return text
        if linked.is_relative_to(DOCS) or not linked.exists():
            return found[0]
        _outside.add(linked)
        return f"[{text}]({COPIED}{linked.relative_to(ROOT)})"

    changed = _LINK.sub(target, markdown)
    _markdown[page.file.src_uri] = changed.replace(f"]({COPIED}", f"]({_up(page)}{COPIED[1:]}")
    return changed


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Make links to copies relative to their page."""
    return html.replace(f'"{COPIED}', f'"{_up(page)}{COPIED[1:]}')


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Name the page's Markdown in its head, for programs."""
    name = page.file.src_uri.rpartition("/")[2]
    link = f'<link rel="alternate" type="text/markdown" href="{name}">'
    return output.replace("</head>", f"{link}</head>", 1)


def on_post_build(config: Any) -> None:
    """Write the pages' Markdown and the copies."""
    site = Path(config["site_dir"])
    for name, text in _markdown.items():
        (site / name).write_text(text, "utf-8")
    for path in _outside:
        copy = site / COPIED[1:] / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _up(page: Any) -> str:
    name: str = page.file.src_uri
    return "../" * name.count("/")
