"""A disk that is full, or may not be written: a clear answer on every path, and nothing is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.conftest import Server
from tests.service.engine.test_diagnose import OPTIONS, SUPPORT

CREATE: dict[str, Any] = {"support": SUPPORT, "options": OPTIONS}
OTHER = {**CREATE, "seed": 7}
LABELLED = {"examples": [{"input": "new", "output": OPTIONS[0]}]}
CASES = [{"text": row["input"], "label": row["output"]} for row in SUPPORT]
WRITES: list[tuple[str, str, Any]] = [
    ("POST", "/v1/adapters", OTHER),
    ("POST", "/v1/adapters?wait_ms=0", OTHER),
    ("POST", "/v1/predict", {**OTHER, "inputs": ["a"]}),
    ("POST", "/v1/classify", {"inputs": ["a"], "examples": CASES}),
    ("POST", "/v1/adapters/ID/calibrate", LABELLED),
    ("POST", "/v1/adapters/ID/diagnose", {}),
    ("DELETE", "/v1/adapters/ID/calibration", None),
    ("DELETE", "/v1/adapters/SPARE", None),
    ("PUT", "/v1/names/tickets", {"adapter_id": "SPARE"}),
    ("DELETE", "/v1/names/tickets", None),
    ("POST", "/v1/files", None),
    ("DELETE", "/v1/files/FILE", None),
]


@contextmanager
def refusing(monkeypatch: pytest.MonkeyPatch, root: Path, number: int) -> Iterator[None]:
    """Have the system refuse to make, fill, rename and remove what is below `root`."""

    def refused(change: Callable[..., Any]) -> Callable[..., Any]:
        def raises(path: Any, *arguments: Any, **named: Any) -> Any:
            if isinstance(path, int) or Path(path).is_relative_to(root):
                raise OSError(number, os.strerror(number), None if isinstance(path, int) else str(path))
            return change(path, *arguments, **named)

        return raises

    with monkeypatch.context() as patch:
        for owner, name in [
            *((Path, name) for name in ("mkdir", "rename", "replace", "unlink", "write_text", "write_bytes")),
            *((os, name) for name in ("fsync", "pwrite")),
        ]:
            patch.setattr(owner, name, refused(getattr(owner, name)))
        yield


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_every_path_that_writes_says_so_and_when_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    server = Server(tmp_path)

    async def scenario(client: httpx.AsyncClient) -> None:
        kept = (await client.post("/v1/adapters", json=CREATE)).json()["id"]
        spare = (await client.post("/v1/adapters", json={**CREATE, "seed": 1})).json()["id"]
        await client.put("/v1/names/tickets", json={"adapter_id": kept})
        rows = {"file": ("rows.jsonl", b"{}\n")}
        file = (await client.post("/v1/files", files=rows, data={"purpose": "batch"})).json()["id"]
        first = {"examples": [{"input": f"input {n}", "output": OPTIONS[n % 2]} for n in range(8)]}
        assert (await client.post(f"/v1/adapters/{kept}/calibrate", json=first)).status_code == 200
        asked = {"adapter_id": kept, "inputs": ["a", "b"]}
        answered = (await client.post("/v1/predict", json=asked)).json()["predictions"]
        calibrated = (await client.get(f"/v1/adapters/{kept}/calibration")).json()

        with refusing(monkeypatch, tmp_path, number):
            for method, path, body in WRITES:
                own = path.replace("ID", kept).replace("SPARE", spare).replace("FILE", file)
                sent = dict(body, adapter_id=spare) if body and "adapter_id" in body else body
                if path == "/v1/files":
                    refused = await client.post(own, files=rows, data={"purpose": "batch"})
                else:
                    refused = await client.request(method, own, json=sent)
                assert (refused.status_code, refused.headers.get("retry-after")) == (507, "30"), (
                    method,
                    path,
                    refused.text,
                )
                assert os.strerror(number) in refused.text
                assert str(tmp_path) not in refused.text
            # What was there is served as before.
            assert (await client.post("/v1/predict", json=asked)).json()["predictions"] == answered
            assert (await client.get("/readyz")).status_code == 200
            shown = (await client.get("/metrics")).text
            assert f'abmll_store_errors_total{{code="store_failed"}} {len(WRITES)}.0' in shown
            assert 'abmll_store_errors_total{code="store_unavailable"} 0.0' in shown

        assert (await client.get(f"/v1/adapters/{kept}/calibration")).json() == calibrated
        there = (await client.get("/v1/adapters")).json()["data"]
        assert {row["id"] for row in there} == {kept, spare}
        assert (await client.get("/v1/names/tickets")).json()["current"]["adapter_id"] == kept
        assert [row["id"] for row in (await client.get("/v1/files")).json()["data"]] == [file]
        # Nothing that was refused stands in the way of the same request later.
        assert (await client.post("/v1/adapters", json=OTHER)).status_code == 201
        assert (await client.delete(f"/v1/adapters/{spare}")).status_code == 200
        assert (await client.delete(f"/v1/files/{file}")).status_code == 200

    server.run(scenario)
    assert [path for path in tmp_path.rglob("*") if "staging" in path.name] == []
