"""Which confidence is answered: calibrated where there is a calibrator and it covers the prediction, else the raw one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from abmll.calibrator import FEATURES, Calibrator, Shown
from abmll.prediction.uncertainty import Predictive, Uncertainty
from abmll.text.tasks import Query
from service.errors import InvalidRequestError
from service.executors.contract import StopRule
from service.gating.confidence import (
    CALIBRATED,
    OWN_TEMPERATURE,
    PREDICTIVE,
    Confidence,
    calibrators_of,
    confidence_of,
    stop_rule,
)
from service.gating.thresholds import Thresholds
from tests.service.conftest import Server
from tests.service.fakes import FakeWorker, served_model

COEFFICIENTS = dict(zip(FEATURES, (0.5, 0.3, -0.2, 0.2, 0.1, 0.4, -0.6), strict=True))
CALIBRATOR = Calibrator("d" * 64, -0.7, COEFFICIENTS, 8, {"tasks": ["one", "two"]})
PREDICTED = Predictive(("x", "y"), (0.2, 0.8), (0.0, 0.0), Uncertainty(0.5, 0.4, 0.1, 0.0), 8)
OPTIONS = ["yes", "no"]
SUPPORT = [{"input": f"text {i}", "output": OPTIONS[i % 2]} for i in range(4)]
BODY: dict[str, Any] = {"support": SUPPORT, "options": OPTIONS, "inputs": ["fine", "awful", "so so"]}


def calibrated_server(root: Path, **settings: Any) -> Server:
    return Server(root, FakeWorker(replace(served_model(), calibrator=CALIBRATOR)), **settings)


def expected(prediction: dict[str, Any], support: int, held_out: tuple[int, int] | None = None) -> float:
    """The formula, from what the answer shows."""
    shares = sorted((o["probability"] for o in prediction["distribution"]), reverse=True)
    uncertainty, log_options = prediction["uncertainty"], math.log(len(shares))
    right, n = held_out or (0, 0)
    row = (
        math.log(shares[0] / (1 - shares[0])), shares[0] - shares[1],
        uncertainty["mutual_information"] / log_options, log_options,
        math.log(support), math.log((right + 0.5) / (n - right + 0.5)), float(held_out is None),
    )  # fmt: skip
    score = CALIBRATOR.intercept + sum(c * x for c, x in zip(COEFFICIENTS.values(), row, strict=True))
    return 1 / (1 + math.exp(-score))


def test_the_confidence_is_calibrated_and_says_by_what(tmp_path: Path) -> None:
    answer = calibrated_server(tmp_path).post("/v1/predict", BODY).json()
    assert answer["calibrator"] == CALIBRATOR.id
    assert list(answer)[-4:] == ["calibrator", "cache", "timings", "request_id"]
    for prediction in answer["predictions"]:
        assert prediction["confidence_kind"] == "calibrated"
        assert prediction["confidence"] == pytest.approx(expected(prediction, 4))


@pytest.mark.parametrize("more", [{}, {"confidence": None}, {"confidence": "predictive"}])
def test_without_a_calibrator_nothing_changes(server: Server, more: dict[str, Any]) -> None:
    answer = server.post("/v1/predict", {**BODY, **more}).json()
    assert "calibrator" not in answer
    assert {p["confidence_kind"] for p in answer["predictions"]} == {"predictive"}


@pytest.mark.parametrize("more", [{"confidence": "predictive"}, {"samples": 7}, {"samples": 0}])
def test_the_raw_confidence_on_request_and_where_samples_are_too_few(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    answer = calibrated_server(tmp_path).post("/v1/predict", {**BODY, **more}).json()
    assert "calibrator" not in answer
    for prediction in answer["predictions"]:
        assert prediction["confidence_kind"] == "predictive"
        assert prediction["confidence"] == max(o["probability"] for o in prediction["distribution"])


def test_free_text_is_not_calibrated(tmp_path: Path) -> None:
    body = {"support": [{"input": "a", "output": "some text"}], "inputs": ["b"]}
    (prediction,) = calibrated_server(tmp_path).post("/v1/predict", body).json()["predictions"]
    assert prediction["confidence_kind"] == "predictive"


def test_the_gate_acts_on_the_confidence_that_is_answered(tmp_path: Path) -> None:
    server = calibrated_server(tmp_path)
    values = [p["confidence"] for p in server.post("/v1/predict", BODY).json()["predictions"]]
    threshold = sorted(values)[1]
    body = {**BODY, "gate": {"min_confidence": threshold}}
    predictions = calibrated_server(tmp_path / "2").post("/v1/predict", body).json()["predictions"]
    assert [p["decision"] == "answer" for p in predictions] == [value >= threshold for value in values]


def test_a_diagnosis_enters_the_confidence(tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        body = {"adapter_id": (await client.post("/v1/predict", json=BODY)).json()["adapter_id"]} | {
            "inputs": BODY["inputs"]
        }
        before = (await client.post("/v1/predict", json=body)).json()
        report = (await client.post(f"/v1/adapters/{body['adapter_id']}/diagnose")).json()["held_out"]
        after = (await client.post("/v1/predict", json=body)).json()
        for old, new in zip(before["predictions"], after["predictions"], strict=True):
            assert old["distribution"] == new["distribution"]
            assert old["confidence"] == pytest.approx(expected(old, 4))
            assert new["confidence"] == pytest.approx(expected(new, 4, (report["correct"], report["n"])))

    calibrated_server(tmp_path).run(scenario)


def test_the_model_says_which_calibrator_it_has(tmp_path: Path, server: Server) -> None:
    async def with_one(client: httpx.AsyncClient) -> None:
        assert (await client.get("/v1/models")).json()["data"][0]["calibrator"] == CALIBRATOR.id

    async def without(client: httpx.AsyncClient) -> None:
        assert (await client.get("/v1/models")).json()["data"][0]["calibrator"] is None

    calibrated_server(tmp_path / "1").run(with_one)
    server.run(without)


@pytest.mark.parametrize(
    ("calibrator", "more"),
    [
        (None, {}),
        (CALIBRATOR, {"samples": 4}),
        (CALIBRATOR, {"support": [{"input": "a", "output": "some text"}], "options": None}),
        (replace(CALIBRATOR, fewest_samples=9), {"samples": "auto"}),
    ],
)
def test_a_calibrated_confidence_that_cannot_be_had_is_refused(
    tmp_path: Path, calibrator: Calibrator | None, more: dict[str, Any]
) -> None:
    server = Server(tmp_path, FakeWorker(replace(served_model(), calibrator=calibrator)))
    answer = server.post("/v1/predict", {**BODY, "confidence": "calibrated", **more})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "confidence"
    assert server.worker.adapted == server.worker.predicted == []


def test_a_calibrated_confidence_that_can_be_had_is_given_on_request(tmp_path: Path) -> None:
    for number, samples in enumerate((8, 16, "auto")):
        server = calibrated_server(tmp_path / str(number))
        body = {**BODY, "confidence": "calibrated", "samples": samples}
        assert server.post("/v1/predict", body).json()["calibrator"] == CALIBRATOR.id


GATE = {"min_confidence": 0.9, "min_margin": 0.4, "max_mutual_information": 0.3}


@pytest.mark.parametrize(
    ("confidence", "gate", "rule"),
    [
        ("calibrated", GATE, StopRule()),
        ("calibrated", {"min_margin": 0.4}, StopRule(min_margin=0.4)),
        ("predictive", GATE, StopRule(0.9, 0.4, 0.3)),
    ],
)
def test_sampling_until_sure_never_holds_a_raw_probability_against_a_calibrated_threshold(
    tmp_path: Path, confidence: str, gate: dict[str, float], rule: StopRule
) -> None:
    server = calibrated_server(tmp_path)
    body = {**BODY, "samples": "auto", "gate": gate, "confidence": confidence}
    assert server.post("/v1/predict", body).status_code == 200
    assert server.worker.predicted[0].gate == rule


# ---- the functions --------------------------------------------------------------------------------------------------


def test_confidences_by_hand() -> None:
    assert confidence_of(PREDICTED) == Confidence(0.8, PREDICTIVE)
    found = confidence_of(PREDICTED, CALIBRATOR, 16)
    assert found == Confidence(CALIBRATOR.confidence(PREDICTED, 16, None), CALIBRATED, CALIBRATOR.id)
    assert confidence_of(PREDICTED, CALIBRATOR, 16, Shown(3, 4)).function != found.function != PREDICTIVE
    assert confidence_of(replace(PREDICTED, samples=7), CALIBRATOR, 16).kind == PREDICTIVE


def test_a_calibrator_is_chosen_query_by_query() -> None:
    queries = [Query("a", ("x", "y")), Query("b")]
    assert calibrators_of(None, CALIBRATOR, 16, queries) == [CALIBRATOR, None]
    assert calibrators_of("predictive", CALIBRATOR, 16, queries) == [None, None]
    with pytest.raises(InvalidRequestError, match="free text"):
        calibrators_of("calibrated", CALIBRATOR, 16, queries)


def test_stop_rules() -> None:
    assert stop_rule(Thresholds(0.9, 0.4), [None]) == StopRule(0.9, 0.4)
    assert stop_rule(Thresholds(0.9, 0.4), [None, OWN_TEMPERATURE]) == StopRule(0.9, 0.4)
    assert stop_rule(Thresholds(0.9, 0.4), [None, CALIBRATOR]) == StopRule()
    assert stop_rule(Thresholds(None, 0.4), [CALIBRATOR]) == StopRule(None, 0.4)
