"""`report.html`: the tables and plots of a results folder as one page, which needs no other file.

It is made from `results.md` and the plots beside it, and asks no network for anything.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

REPORT = "report.html"
PLOTS = {"risk-coverage": "Risk against coverage", "reliability": "Accuracy against confidence"}
_SECTION = re.compile(r"(.+), k = (.+)")
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { margin: 2rem auto; padding: 0 1rem; max-width: 75rem }
.scroll { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #8886; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas }
img { max-width: 100%; background: #fff }
figure { margin: 1rem 0 }
pre { overflow-x: auto; padding: 1rem; border: 1px solid #8886 }
"""


def plot_name(kind: str, split: str, shots: str) -> str:
    """Return the file name of a plot of `PLOTS` for a split and k."""
    stem = f"{split}-k{shots}".replace("/", "-").replace(" ", "-")
    return f"{kind}-{stem}.png"


def write_html(folder: Path) -> Path:
    """Write `report.html` into a results folder, and return its path. Raises `OSError`."""
    page = (folder / "results.md").read_text("utf-8")
    title = page.partition("\n")[0].removeprefix("# ")
    body = "\n".join(_blocks(page, folder))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    text = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="content-security-policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
    (folder / REPORT).write_text(text, "utf-8")
    return folder / REPORT


def _blocks(page: str, folder: Path) -> Iterator[str]:
    """Yield the parts of the Markdown that `lab.evaluation.tables` writes, with the plots of a
    section.
    """
    for block in page.strip().split("\n\n"):
        if block.startswith("#"):
            level, _, text = block.partition(" ")
            yield f"<h{len(level)}>{_inline(text)}</h{len(level)}>"
            section = _SECTION.fullmatch(text)
            if section and len(level) == 2:
                yield from _plots(folder, section[1], section[2])
        elif block.startswith("|"):
            yield _table(block)
        elif block.startswith("```"):
            lines = block.split("\n")
            yield f"<pre>{escape(chr(10).join(lines[1:-1]))}</pre>"
        else:
            yield f"<p>{_inline(block)}</p>"


def _table(block: str) -> str:
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.split("\n"))
    names = "".join(f'<th scope="col">{_inline(cell)}</th>' for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{names}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _plots(folder: Path, split: str, shots: str) -> Iterator[str]:
    for kind, caption in PLOTS.items():
        path = folder / plot_name(kind, split, shots)
        if path.is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            text = f"{caption}: {split}, k = {shots}"
            image = f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'
            yield f"<figure>{image}<figcaption>{escape(text)}</figcaption></figure>"


def _inline(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(text))
