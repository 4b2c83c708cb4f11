"""Journals of gates where the disk is full, and of another version."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.service.conftest import Server
from tests.service.gating.calling import TARGET, Caller, error, texts


def test_a_full_disk_acknowledges_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import model_store.adapters.journals

    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        await caller.calibrate(texts("a", 20))
        before = (await caller.calibration()).json()

        def full(_handle: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(model_store.adapters.journals.os, "fsync", full)
            assert error(await caller.ask(["x"], gate=TARGET), 507)["code"] == "store_failed"
            more = {"examples": [{"input": "b", "output": "yes"}]}
            assert error(await caller.post("calibrate", more), 507)["code"] == "store_failed"
        assert (await caller.calibration()).json() == before

    server.run(scenario)


def test_a_journal_of_another_version_is_left_alone_and_not_used(server: Server, tmp_path: Path) -> None:
    from model_store.adapters.gate_journals import GateJournals

    async def calibrated(client: httpx.AsyncClient) -> None:
        await (await Caller.of(client)).calibrate(texts("a", 20))

    server.run(calibrated)
    (folder,) = (tmp_path / "calibrations").glob("adp_*")
    store = GateJournals(tmp_path / "calibrations")
    (record,) = store.read(folder.name) or []
    store.begin(folder.name, [{**json.loads(json.dumps(record)), "format_version": 99}])

    async def restarted(client: httpx.AsyncClient) -> None:
        assert error(await (await Caller.of(client)).calibration())["code"] == "calibration_missing"

    Server(tmp_path).run(restarted)
    assert folder.exists()


def test_a_journal_that_means_nothing_counts_as_none_and_is_moved_aside(
    server: Server, tmp_path: Path
) -> None:
    from model_store.adapters.gate_journals import GateJournals

    async def made(client: httpx.AsyncClient) -> None:
        await Caller.of(client)

    server.run(made)
    (adapter,) = (tmp_path / "adapters").glob("adp_*")
    GateJournals(tmp_path / "calibrations").begin(adapter.name, [{"kind": "snapshot", "format_version": 1}])

    async def restarted(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        assert error(await caller.calibration())["code"] == "calibration_missing"
        await caller.calibrate(texts("a", 20))
        assert (await caller.calibration()).json()["n"] == 20

    Server(tmp_path).run(restarted)
    assert len(list((tmp_path / "calibrations" / ".damaged").iterdir())) == 1
