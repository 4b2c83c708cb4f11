"""What the README shows is what the shipped model answers."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Server
from tests.e2e.test_server import BF16_TOLERANCE

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
# Shown numbers have two decimals.
TOLERANCE = BF16_TOLERANCE + 0.005


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of the README in this language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_request_has_the_answer_that_is_shown(server: Server) -> None:
    (body,) = re.findall(r"/v1/predict .*? -d '(\{.*?\})'\n", README, re.DOTALL)
    (block,) = blocks("json")
    response = server.client.post("/v1/predict", json=json.loads(body))
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["predictions"]
    shown: list[dict[str, Any]] = json.loads(block)
    assert len(found) == len(shown)
    for real, part in zip(found, shown, strict=True):
        assert real["confidence"] == pytest.approx(part.pop("confidence"), abs=TOLERANCE)
        assert {name: real.get(name) for name in part} == part
        assert ("abstain_reason" in real) == ("abstain_reason" in part)


def test_the_python_of_the_readme_runs_and_finds_the_parcel(server: Server) -> None:
    url = str(server.client.base_url).rstrip("/")
    python = blocks("python")
    assert len(python) == 2
    for block in python:
        printed = io.StringIO()
        names: dict[str, Any] = {}
        with contextlib.redirect_stdout(printed):
            exec(block.replace("http://localhost:8000", url), names)
        names["client"].close()
        assert "delivery" in printed.getvalue()


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node on the path")
def test_the_javascript_of_the_readme_runs_and_finds_the_parcel(server: Server, tmp_path: Path) -> None:
    (block,) = blocks("js")
    url = str(server.client.base_url).rstrip("/")
    shutil.copy(ROOT / "service/playground/static/client.js", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "taste.js").write_text(block.replace("http://localhost:8000", url))
    command = [str(shutil.which("node")), str(tmp_path / "taste.js")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    assert "answer: 'delivery'" in printed
