"""A copy of the data folder of a running server, as the documentation makes it, is a whole backup."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import httpx
from typer.testing import CliRunner

from service.cli.main import app
from tests.service.conftest import Server
from tests.service.engine.test_diagnose import OPTIONS, SUPPORT


def copy(data: Path, backup: Path) -> None:
    """Copy as docs/shared-store.md says: what refers to adapters first, adapters last."""
    backup.mkdir()
    for folder in ("names", "calibrations", "adapters"):
        if (data / folder).is_dir():
            subprocess.run(["cp", "-a", str(data / folder), str(backup)], check=False, capture_output=True)


def test_a_copy_under_load_verifies_exports_and_serves_what_was_there(tmp_path: Path) -> None:
    server, backup = Server(tmp_path / "data"), tmp_path / "backup"
    before: dict[str, str] = {}

    async def scenario(client: httpx.AsyncClient) -> None:
        stop = False

        async def write() -> None:
            seed = 0
            while not stop:
                seed += 1
                body = {"support": SUPPORT, "options": OPTIONS, "seed": seed}
                made = (await client.post("/v1/adapters", json=body)).json()["id"]
                await client.put(f"/v1/names/name{seed}", json={"adapter_id": made})
                await client.put("/v1/names/current", json={"adapter_id": made})
                if seed <= 3:
                    before[f"name{seed}"] = made

        writing = asyncio.create_task(write())
        while len(before) < 3:
            assert not writing.done() or writing.result()
            await asyncio.sleep(0.01)
        await asyncio.to_thread(copy, tmp_path / "data", backup)
        stop = True
        await writing

    server.run(scenario)
    run = CliRunner().invoke(app, ["store", "verify", "--data-dir", str(backup), "--json"])
    assert (run.exit_code, json.loads(run.output)["findings"]) == (0, []), run.output
    tar = tmp_path / "backup.tar"
    run = CliRunner().invoke(app, ["store", "export", str(tar), "--data-dir", str(backup), "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.output)["exported"]["adapter"] >= 3

    async def restored(client: httpx.AsyncClient) -> None:
        for name, made in before.items():
            answer = (await client.post("/v1/predict", json={"model": name, "inputs": ["a"]})).json()
            assert answer["adapter_id"] == made
        named = (await client.get("/v1/names")).json()["data"]
        assert all(row["current"]["available"] for row in named)

    Server(backup).run(restored)
