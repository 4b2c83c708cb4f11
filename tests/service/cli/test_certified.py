"""`abmll predict` with an adapter that a server calibrated: the command line has the same gates."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from service.cli.main import app
from tests.service.conftest import Server
from tests.service.fakes import FakeWorker

OPTIONS = ["yes", "no"]
SUPPORT = [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}]
INPUTS = [f"new {i}" for i in range(8)]


def calibrated(root: Path) -> tuple[str, dict[str, Any]]:
    """An adapter with 40 labelled outcomes in the data folder `root`, and what the server answers
    with its gate.
    """
    server, found = Server(root), {}

    async def scenario(client: httpx.AsyncClient) -> None:
        made = await client.post("/v1/adapters", json={"support": SUPPORT, "options": OPTIONS})
        adapter = made.json()["id"]
        examples = [{"input": f"known {i}", "output": OPTIONS[i % 2]} for i in range(40)]
        answer = await client.post(f"/v1/adapters/{adapter}/calibrate", json={"examples": examples})
        assert answer.status_code == 200, answer.text
        body = {"adapter_id": adapter, "inputs": INPUTS, "gate": {"target_coverage": 0.5}}
        found.update(id=adapter, answer=(await client.post("/v1/predict", json=body)).json())

    server.run(scenario)
    return found["id"], found["answer"]


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.executors.loading.load_worker", lambda settings: FakeWorker())


def predict(root: Path, *arguments: str) -> tuple[int, str]:
    inputs = root / "inputs.jsonl"
    inputs.write_text("".join(json.dumps({"input": text}) + "\n" for text in INPUTS))
    run = CliRunner().invoke(
        app, ["predict", str(inputs), "--data-dir", str(root / "data"), "--json", *arguments]
    )
    return run.exit_code, run.output


def test_the_command_line_decides_by_the_calibration_as_the_server_does(tmp_path: Path) -> None:
    adapter, answer = calibrated(tmp_path / "data")
    code, output = predict(tmp_path, "--adapter", adapter, "--target-coverage", "0.5")
    assert code == 0, output
    found = json.loads(output)
    assert {k: v for k, v in found["gate"].items() if v is not None} == answer["gate"]
    assert {p["decision"] for p in found["predictions"]} == {"answer", "abstain"}
    for one, other in zip(found["predictions"], answer["predictions"], strict=True):
        for name in ("answer", "confidence", "decision", "abstain_reason", "prediction_id", "explored"):
            assert one[name] == other.get(name)


def test_a_target_that_the_labels_do_not_certify_is_refused(tmp_path: Path) -> None:
    adapter, _ = calibrated(tmp_path / "data")
    code, output = predict(tmp_path, "--adapter", adapter, "--target-error", "0.01")
    assert code == 1
    assert "cannot certify" in output


@pytest.mark.parametrize(
    "arguments",
    [
        ("--adapter", "adp_00000000", "--target-error", "0.1", "--target-coverage", "0.5"),
        ("--support", "SUPPORT", "--target-coverage", "0.5"),
    ],
)
def test_targets_exclude_each_other_and_need_a_stored_adapter(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    support = tmp_path / "support.jsonl"
    support.write_text("".join(json.dumps({**row, "options": OPTIONS}) + "\n" for row in SUPPORT))
    code, output = predict(tmp_path, *(str(support) if a == "SUPPORT" else a for a in arguments))
    assert code == 2, output
