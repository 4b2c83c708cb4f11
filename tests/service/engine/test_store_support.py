"""With `store_support: digest` no text of an example reaches the disk, and the rest goes on as it
was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.conftest import Server

SECRET = "a very private ticket"
OPTIONS = ["yes", "no"]
SUPPORT = [{"input": f"{SECRET} {i}", "output": OPTIONS[i % 2], "options": OPTIONS} for i in range(4)]
FREE = [{"input": f"{SECRET} {i}", "output": f"the {SECRET} is answered"} for i in range(3)]
BODY: dict[str, Any] = {"support": SUPPORT, "inputs": ["a", "b"], "samples": 4}


def texts_on_disk(root: Path) -> list[str]:
    return [p.name for p in root.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]


@pytest.mark.parametrize("support", [SUPPORT, FREE])
def test_answers_are_the_same_and_no_text_is_on_disk(tmp_path: Path, support: object) -> None:
    body = {**BODY, "support": support}
    shown = [
        Server(tmp_path / kind, store_support=kind).post("/v1/predict", body).json()
        for kind in ("text", "digest")
    ]
    assert shown[0]["predictions"] == shown[1]["predictions"]
    assert shown[0]["adapter_id"] == shown[1]["adapter_id"]
    assert texts_on_disk(tmp_path / "text") == ["manifest.json"]
    assert texts_on_disk(tmp_path / "digest") == []
    # read from the disk again, by a server that would keep texts
    asked = {"adapter_id": shown[1]["adapter_id"], "inputs": ["a", "b"], "samples": 4}
    again = Server(tmp_path / "digest").post("/v1/predict", asked).json()
    assert again["predictions"] == shown[1]["predictions"]


def test_what_needs_the_texts_is_refused_and_gates_still_know_them(tmp_path: Path) -> None:
    server = Server(tmp_path, store_support="digest")

    async def scenario(client: httpx.AsyncClient) -> None:
        id = (await client.post("/v1/predict", json=BODY)).json()["adapter_id"]
        refused = await client.post(f"/v1/adapters/{id}/diagnose")
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (422, "undiagnosable")
        assert "store_support" in error["message"]
        rows = [{"input": SUPPORT[0]["input"], "output": "yes"}, {"input": "new", "output": "yes"}]
        view = (await client.post(f"/v1/adapters/{id}/calibrate", json={"examples": rows})).json()
        assert view["n"] == 1  # the other is in the support
        assert "made from them" in view["warnings"][0]

    server.run(scenario)
    assert texts_on_disk(tmp_path) == []


def test_a_warning_does_not_bring_a_text_back(tmp_path: Path) -> None:
    twice = [*SUPPORT, {**SUPPORT[0], "output": "no"}]
    answer = Server(tmp_path, store_support="digest").post("/v1/predict", {**BODY, "support": twice})
    assert "different outputs" in answer.text
    assert texts_on_disk(tmp_path) == []
