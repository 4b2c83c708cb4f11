"""Kinds of confidence: calibrated where the adapter has its own temperature, else predictive."""

from __future__ import annotations

from typing import Any

import pytest

from abmll.prediction.uncertainty import Predictive, Uncertainty
from abmll.text.tasks import CANNOT_TELL, Query, question_key
from service.errors import InvalidRequestError
from service.gating.confidence import CALIBRATED, PREDICTIVE, Confidence, confidence_kinds, confidence_of
from tests.service.conftest import Server

PREDICTED = Predictive(("x", "y"), (0.2, 0.8), (0.0, 0.0), Uncertainty(0.5, 0.4, 0.1, 0.0), 8)
SINGLE = Predictive(("x",), (0.7,), (0.0,), Uncertainty(0.5, 0.4, 0.1, 0.0), 8)
OPTIONS = ["yes", "no"]
SUPPORT = [{"input": f"text {i}", "output": OPTIONS[i % 2]} for i in range(6)]
BODY: dict[str, Any] = {"support": SUPPORT, "options": OPTIONS, "inputs": ["fine", "awful", "so so"]}
FOLDS = {"adapt": {"calibration_folds": 2}}


def test_the_confidence_of_an_adapter_with_its_own_temperature_is_calibrated(server: Server) -> None:
    answer = server.post("/v1/predict", {**BODY, **FOLDS}).json()
    assert answer["calibrator"] == "held_out"
    assert list(answer)[-4:] == ["calibrator", "cache", "timings", "request_id"]
    for prediction in answer["predictions"]:
        assert prediction["confidence_kind"] == "calibrated"
        assert prediction["confidence"] == max(o["probability"] for o in prediction["distribution"])


@pytest.mark.parametrize("more", [{}, {"confidence": None}, {"confidence": "predictive"}])
def test_without_one_it_is_predictive(server: Server, more: dict[str, Any]) -> None:
    answer = server.post("/v1/predict", {**BODY, **more}).json()
    assert "calibrator" not in answer
    assert {p["confidence_kind"] for p in answer["predictions"]} == {"predictive"}


def test_a_predictive_confidence_is_given_on_request(server: Server) -> None:
    answer = server.post("/v1/predict", {**BODY, **FOLDS, "confidence": "predictive"}).json()
    assert "calibrator" not in answer
    assert {p["confidence_kind"] for p in answer["predictions"]} == {"predictive"}


def test_free_text_is_not_calibrated(server: Server) -> None:
    body = {"support": [{"input": "a", "output": "some text"}], "inputs": ["b"]}
    (prediction,) = server.post("/v1/predict", body).json()["predictions"]
    assert prediction["confidence_kind"] == "predictive"


def test_a_calibrated_confidence_that_cannot_be_had_is_refused_before_any_work(server: Server) -> None:
    answer = server.post("/v1/predict", {**BODY, "confidence": "calibrated"})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "confidence"
    assert server.worker.adapted == server.worker.predicted == []


@pytest.mark.parametrize("samples", [0, 8, "auto"])
def test_a_calibrated_confidence_that_can_be_had_is_given_on_request(
    server: Server, samples: int | str
) -> None:
    body = {**BODY, **FOLDS, "confidence": "calibrated", "samples": samples}
    assert server.post("/v1/predict", body).json()["calibrator"] == "held_out"


# ---- the functions -------------------------------------------------------------------------------


def test_confidences_by_hand() -> None:
    assert confidence_of(PREDICTED, PREDICTIVE) == Confidence(0.8, PREDICTIVE)
    found = confidence_of(PREDICTED, CALIBRATED)
    assert (found.value, found.kind, found.function) == (0.8, CALIBRATED, "calibrated:held_out")
    assert confidence_of(PREDICTED, PREDICTIVE).function == PREDICTIVE
    assert confidence_of(SINGLE, CALIBRATED).kind == PREDICTIVE


def test_kinds_are_chosen_query_by_query() -> None:
    queries = [Query("a", ("x", "y")), Query("b")]
    assert confidence_kinds(None, queries, own_temperature=True) == [CALIBRATED, PREDICTIVE]
    assert confidence_kinds("predictive", queries, own_temperature=True) == [PREDICTIVE, PREDICTIVE]
    assert confidence_kinds(None, queries, own_temperature=False) == [PREDICTIVE, PREDICTIVE]
    with pytest.raises(InvalidRequestError, match="free text"):
        confidence_kinds("calibrated", queries, own_temperature=True)
    with pytest.raises(InvalidRequestError, match="calibration_folds"):
        confidence_kinds("calibrated", queries[:1], own_temperature=False)


def test_a_question_without_cases_has_no_calibrated_confidence() -> None:
    options = ("x", "y", CANNOT_TELL)
    known, new = (Query("a", options, text, declinable=True) for text in ("Known?", "New?"))
    questions = {question_key(known)}
    found = confidence_kinds(None, [known, new], own_temperature=True, questions=questions)
    assert found == [CALIBRATED, PREDICTIVE]
    with pytest.raises(InvalidRequestError, match="no cases of the question 'New"):
        confidence_kinds("calibrated", [known, new], own_temperature=True, questions=questions)
    plain = [Query("a", ("x", "y")), Query("a", ("u", "v"))]
    of_plain = {question_key(plain[0])}
    assert confidence_kinds(None, plain, own_temperature=True, questions=of_plain) == [CALIBRATED] * 2
