"""Calibrations, gates and labels that are refused."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from service.api.native.requests import predict_request
from service.schemas import PredictRequest
from tests.service.conftest import Server
from tests.service.gating.calling import OPTIONS, SUPPORT, TARGET, Caller, error, texts

ROW = {"input": "x", "output": "yes"}
REFUSED_CALIBRATIONS = {
    "no examples": ({"examples": []}, "invalid_request", "examples"),
    "an output outside the options": (
        {"examples": [ROW, {"input": "y", "output": "maybe"}]}, "invalid_options", "examples[1].output",
    ),
    "an input beyond the context": (
        {"examples": [{"input": "y" * 300, "output": "yes"}]}, "prompt_too_long", "examples[0]",
    ),
    "too many at once": ({"examples": [{**ROW, "input": str(i)} for i in range(31)]}, "limit_exceeded", "examples"),
    "too many in all": ({"examples": [{**ROW, "input": str(i)} for i in range(26)]}, "limit_exceeded", "examples"),
    "an unknown field": ({"examples": [ROW], "target": 1}, "invalid_request", "target"),
    "an example without output": ({"examples": [{"input": "x"}]}, "invalid_request", "examples[0].output"),
    "too many samples": ({"examples": [ROW], "samples": 40}, "limit_exceeded", "samples"),
    "one option": ({"examples": [{**ROW, "options": ["yes"]}]}, "invalid_options", "examples[0]"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_CALIBRATIONS)
def test_bad_calibrations_are_refused_before_any_model_work(tmp_path: Path, name: str) -> None:
    body, code, param = REFUSED_CALIBRATIONS[name]
    server = Server(tmp_path, max_inputs=30, max_calibration=25, max_samples=32)

    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        refusal = error(await caller.post("calibrate", body))
        assert (refusal["code"], refusal["param"]) == (code, param)
        assert server.worker.predicted == []
        assert error(await caller.calibration())["code"] == "calibration_missing"

    server.run(scenario)


REFUSED_REQUESTS = {
    "a target and a raw threshold": ({"gate": {**TARGET, "min_confidence": 0.5}}, "gate"),
    "a target error and a coverage": ({"gate": {**TARGET, "target_coverage": 0.5}}, "gate"),
    "delta alone": ({"gate": {"delta": 0.1}}, "gate"),
    "a target of zero": ({"gate": {"target_error": 0}}, "gate.target_error"),
    "a certain delta": ({"gate": {"target_error": 0.1, "delta": 0}}, "gate.delta"),
    "a full coverage": ({"gate": {"target_coverage": 1}}, "gate.target_coverage"),
    "an alpha of one": ({"set": {"alpha": 1}}, "set.alpha"),
    "a set without alpha": ({"set": {}}, "set.alpha"),
    "log as text": ({"log": "yes"}, "log"),
}


@pytest.mark.parametrize("name", REFUSED_REQUESTS)
def test_bad_gates_are_refused(server: Server, name: str) -> None:
    fields, param = REFUSED_REQUESTS[name]
    refusal = error(server.post("/v1/predict", {"adapter_id": "adp_00000000", "inputs": ["x"], **fields}))
    assert (refusal["code"], refusal["param"]) == ("invalid_request", param)


def test_a_calibrated_gate_needs_an_adapters_id(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        body = {"support": SUPPORT, "options": OPTIONS, "inputs": ["x"], "gate": TARGET}
        assert "adapter_id" in error(await client.post("/v1/predict", json=body))["message"]
        unknown = {"adapter_id": "adp_00000000", "inputs": ["x"], "gate": TARGET}
        refused = await client.post("/v1/predict", json=unknown)
        assert error(refused, 404)["code"] == "unknown_adapter"

    server.run(scenario)


def test_a_gate_with_a_target_always_needs_the_calibration() -> None:
    for body in (
        {"gate": {"target_error": 0.1}},
        {"gate": {"target_coverage": 0.5}},
        {"set": {"alpha": 0.1}},
    ):
        request = predict_request(PredictRequest.model_validate({"adapter_id": "a", "inputs": ["x"], **body}))
        assert request.gate.needs_calibration
        assert request.gate.promises
    logged = PredictRequest(adapter_id="a", inputs=["x"], log=True)
    assert predict_request(logged).gate.needs_calibration
    assert not predict_request(PredictRequest(adapter_id="a", inputs=["x"])).gate.needs_calibration


@pytest.mark.parametrize(
    ("rows", "status", "code", "param"),
    [
        ([], 422, "invalid_request", "feedback"),
        (
            [{"prediction_id": "prd_0", "label": "yes"}],
            404,
            "unknown_prediction",
            "feedback[0].prediction_id",
        ),
        ([{"prediction_id": "prd_0"}], 422, "invalid_request", "feedback[0].label"),
        ([{"prediction_id": "prd_0", "label": "yes"}] * 300, 422, "limit_exceeded", "feedback"),
    ],
)
def test_bad_feedback_is_refused(
    server: Server, rows: list[dict[str, str]], status: int, code: str, param: str
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        assert (
            error(await caller.post("feedback", {"feedback": [{"prediction_id": "p", "label": "l"}]}))["code"]
            == "calibration_missing"
        )
        await caller.calibrate(texts("a", 20))
        refusal = error(await caller.post("feedback", {"feedback": rows}), status)
        assert (refusal["code"], refusal["param"]) == (code, param)

    server.run(scenario)


def test_a_label_that_is_no_option_is_refused_and_nothing_of_its_batch_is_stored(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        await caller.calibrate(texts("a", 20))
        served = await caller.predictions(texts("new", 2), log=True)
        rows = [
            {"prediction_id": served[0]["prediction_id"], "label": "yes"},
            {"prediction_id": served[1]["prediction_id"], "label": "maybe"},
        ]
        refusal = error(await caller.post("feedback", {"feedback": rows}))
        assert (refusal["code"], refusal["param"]) == ("invalid_options", "feedback[1].label")
        assert (await caller.calibration()).json()["monitoring"]["labelled"] == 0

    server.run(scenario)
