"""Free text over HTTP: the fields of an answer, the gate, and answers with options beside it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from service import schemas
from tests.service.api.test_predict import shape
from tests.service.conftest import Server
from tests.service.fakes import TEXTS

TEXT: dict[str, Any] = {"support": [{"input": "2+2", "output": "four"}], "inputs": ["3+3"]}
OPTIONS: dict[str, Any] = {
    "support": [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}],
    "options": ["yes", "no"],
    "inputs": ["fine"],
}


def test_the_shape_of_a_text_is_kept(server: Server) -> None:
    (prediction,) = server.post("/v1/predict", TEXT).json()["predictions"]
    expected = {
        "sequence_logprob": "float",
        "logprob_per_token": "float",
        "tokens": "int",
        "complete": "bool",
        "semantic_entropy": "float",
        "expected_semantic_entropy": "float",
        "semantic_mutual_information": "float",
        "clusters": [{"answer": "str", "probability": "float", "share": "float", "members": ["str"]}],
    }
    assert json.dumps(shape(prediction["text"])) == json.dumps(expected)
    assert list(prediction)[-2:] == ["samples", "text"]


def test_options_have_no_text(server: Server) -> None:
    (prediction,) = server.post("/v1/predict", OPTIONS).json()["predictions"]
    assert "text" not in prediction


def test_an_answer_agrees_with_its_clusters(server: Server) -> None:
    (prediction,) = server.post("/v1/predict", TEXT).json()["predictions"]
    text = prediction["text"]
    first, second = text["clusters"]
    assert prediction["answer"] == first["answer"] == TEXTS[0]
    assert (first["members"], second["members"]) == ([TEXTS[0], TEXTS[1]], [TEXTS[2]])
    assert prediction["confidence"] == first["probability"]
    assert prediction["margin"] == pytest.approx(first["probability"] - second["probability"])
    assert [row["option"] for row in prediction["distribution"]] == [first["answer"], second["answer"]]
    assert first["share"] + second["share"] == pytest.approx(1)
    assert first["probability"] + second["probability"] < 1
    assert text["logprob_per_token"] == pytest.approx(text["sequence_logprob"] / text["tokens"])
    shares = (first["share"], second["share"])
    assert text["semantic_entropy"] == pytest.approx(-sum(p * math.log(p) for p in shares))
    assert 0 < text["expected_semantic_entropy"] < text["semantic_entropy"]
    assert text["semantic_mutual_information"] > 0


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ({"max_semantic_entropy": 0.0}, "semantic_entropy_above_maximum"),
        ({"max_semantic_entropy": 1.0}, None),
        ({"min_logprob_per_token": -0.0001}, "logprob_per_token_below_minimum"),
        ({"min_logprob_per_token": -1}, None),
        ({"min_confidence": 1.0, "max_semantic_entropy": 0.0}, "confidence_below_minimum"),
    ],
)
def test_the_gate_has_conditions_on_free_text(
    server: Server, condition: dict[str, float], reason: str | None
) -> None:
    body = {**TEXT, "gate": condition}
    (prediction,) = server.post("/v1/predict", body).json()["predictions"]
    assert prediction.get("abstain_reason") == reason
    assert prediction["decision"] == ("answer" if reason is None else "abstain")
    assert prediction["answer"] == TEXTS[0]


@pytest.mark.parametrize("condition", [{"max_semantic_entropy": 0.5}, {"min_logprob_per_token": -1.0}])
def test_a_condition_on_free_text_without_any_is_refused(server: Server, condition: dict[str, float]) -> None:
    response = server.post("/v1/predict", {**OPTIONS, "gate": condition})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (422, "invalid_request", "gate")
    assert not server.worker.predicted


@pytest.mark.parametrize(
    "condition",
    [{"max_semantic_entropy": -0.1}, {"min_logprob_per_token": 0.1}, {"min_logprob_per_token": "a"}],
)
def test_impossible_conditions_are_refused(server: Server, condition: dict[str, Any]) -> None:
    response = server.post("/v1/predict", {**TEXT, "gate": condition})
    assert response.status_code == 422
    assert response.json()["error"]["param"] == f"gate.{next(iter(condition))}"


def test_auto_samples_take_a_gate_on_free_text(server: Server) -> None:
    body = {**TEXT, "samples": "auto", "gate": {"min_confidence": 0.5, "max_semantic_entropy": 0.5}}
    assert server.post("/v1/predict", body).status_code == 200
    assert server.worker.predicted[0].settings.thresholds.min_confidence == 0.5


@pytest.mark.parametrize("samples", [0, 4])
def test_a_repeated_request_gets_the_same_bytes(tmp_path: Path, samples: int) -> None:
    body = {**TEXT, "samples": samples}
    contents = [Server(tmp_path / str(i)).post("/v1/predict", body).content for i in range(2)]
    parts = [content.partition(b',"cache":')[0] for content in contents]
    assert parts[0] == parts[1]
    answer = schemas.PredictResponse.model_validate_json(contents[0])
    text = answer.predictions[0].text
    assert text is not None
    if samples == 0:
        assert text.semantic_entropy == text.expected_semantic_entropy > 0
        assert text.semantic_mutual_information == 0


@pytest.mark.parametrize(("samples", "answers"), [(16, 4), (0, 64), ("auto", 4), (1, 64)])
def test_answers_a_sample_are_asked_for_up_to_a_limit(server: Server, samples: Any, answers: int) -> None:
    body = {**TEXT, "samples": samples, "answers_per_sample": answers}
    assert server.post("/v1/predict", body).status_code == 200
    assert server.worker.predicted[0].settings.answers_per_sample == answers


@pytest.mark.parametrize(("samples", "answers"), [(16, 5), ("auto", 5), (33, 2)])
def test_more_texts_than_the_limit_on_samples_are_refused(server: Server, samples: Any, answers: int) -> None:
    body = {**TEXT, "samples": samples, "answers_per_sample": answers}
    response = server.post("/v1/predict", body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (422, "limit_exceeded")
    assert error["param"] == "answers_per_sample"
    assert "the limit is 64" in error["message"]
