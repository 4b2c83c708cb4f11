"""The notebooks run from their first cell to their last, against the whole application."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

import abmll_client
from service.embedded import Embedded

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs/examples").glob("*.ipynb"))


def code(path: Path) -> list[str]:
    """Return the code cells of a notebook. Raises `AssertionError` for one with outputs."""
    notebook = json.loads(path.read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in cells] == [[]] * len(cells)
    return ["".join(cell["source"]) for cell in cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, embedded: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    asked: list[str] = []

    def client(url: str) -> abmll_client.Client:
        asked.append(url)
        return embedded.client()

    monkeypatch.setattr(abmll_client, "Client", client)
    names: dict[str, Any] = {}
    for number, cell in enumerate(code(path), start=1):
        exec(compile(cell, f"{path.name} cell {number}", "exec"), names)
    assert asked == ["http://localhost:8000"]
    assert len(names["answers"]) == len(names["kept_back"]) > 0
    (curve, *_) = [pyplot.figure(number).axes[0] for number in pyplot.get_fignums()]
    assert curve.lines[0].get_xdata()[-1] == 1
    pyplot.close("all")


def test_there_are_notebooks_and_a_page_links_each() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["certify_a_gate", "first_decision"]
    pages = "".join(path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md"))
    assert all(f"(examples/{path.name})" in pages for path in NOTEBOOKS)
