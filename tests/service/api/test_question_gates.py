"""Named questions from labels to certificates over HTTP: calibrate, decide, feedback, diagnose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.api.test_decide import CASES, QUESTIONS, answers, create
from tests.service.conftest import Server

TEXTS = [f"mail {i}" for i in range(40)]
LEVELS = ("calm", "cross", "furious")


async def post(client: httpx.AsyncClient, path: str, body: Any) -> dict[str, Any]:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def calibrated(client: httpx.AsyncClient) -> str:
    """Return an adapter whose three questions are calibrated on its own answers, by their names."""
    made: str = (await create(client))["id"]
    rows = answers(await client.post("/v1/decide", json={"adapter_id": made, "inputs": TEXTS}))
    cases = [
        {"input": text, "answers": {name: answer["answer"] for name, answer in row.items()}}
        for text, row in zip(TEXTS, rows, strict=True)
    ]
    for name in ("urgent", "team", "anger"):
        found = await post(client, f"/v1/adapters/{made}/calibrate", {"cases": cases, "question": name})
        assert (found["question"]["name"], found["n"], found["accuracy"]) == (name, 40, 1)
    return made


def test_every_kind_of_question_is_calibrated_and_labelled_in_the_words_of_its_cases(tmp_path: Path) -> None:
    server = Server(tmp_path, feedback_share=1.0)

    async def scenario(client: httpx.AsyncClient) -> None:
        made = await calibrated(client)
        body = {"adapter_id": made, "inputs": ["new"], "gate": {"target_error": 0.2}}
        (row,) = answers(await client.post("/v1/decide", json=body))
        assert len({answer["prediction_id"] for answer in row.values()}) == 3
        assert len({answer["gate"]["calibration_id"] for answer in row.values()}) == 3
        level = LEVELS.index(row["anger"]["answer"])
        labels = {"urgent": row["urgent"]["answer"], "team": None, "anger": level}
        feedback = [
            {"prediction_id": row[name]["prediction_id"], "label": label} for name, label in labels.items()
        ]
        found = await post(client, f"/v1/adapters/{made}/feedback", {"feedback": feedback})
        assert found["stored"] == 3
        assert {view["question"]["name"]: view["accuracy"] for view in found["calibrations"]} == {
            "urgent": 1, "team": 40 / 41, "anger": 1,
        }  # fmt: skip
        one = await client.get(f"/v1/adapters/{made}/calibration", params={"question": "anger"})
        assert one.json() == found["calibrations"][2]
        wrong = [{"prediction_id": row["anger"]["prediction_id"], "label": 3}]
        refused = await client.post(f"/v1/adapters/{made}/feedback", json={"feedback": wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "feedback[0].label")

    server.run(scenario)


def test_predicting_with_an_adapter_of_one_question_is_gated_by_its_calibration(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        cases = [
            {"input": text, "answers": {"team": value}} for text, value in (("a", "it"), ("b", "billing"))
        ]
        made = (await create(client, questions=QUESTIONS[1:2], cases=cases))["id"]
        body = {"adapter_id": made, "inputs": ["new"], "gate": {"target_coverage": 0.5}}
        refused = await client.post("/v1/predict", json=body)
        assert (refused.json()["error"]["code"], refused.json()["error"]["param"]) == (
            "calibration_missing",
            "adapter_id",
        )
        rows = [{"input": text, "output": "it"} for text in TEXTS]
        view = await post(client, f"/v1/adapters/{made}/calibrate", {"examples": rows})
        one = await post(client, "/v1/predict", body)
        two = await post(client, "/v1/decide", body)
        assert one["gate"]["calibration_id"] == view["id"]
        (predicted,), decided = one["predictions"], two["results"][0]["answers"]["team"]
        assert predicted["prediction_id"] == decided["prediction_id"]

    server.run(scenario)


def test_the_diagnosis_names_questions_and_scores_levels_by_their_order(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        more = [
            {"input": f"mail {i}", "answers": {"urgent": i % 2 == 0, "anger": LEVELS[i % 3]}}
            for i in range(6)
        ]
        made = (await create(client, cases=[*CASES, *more]))["id"]
        found = await post(client, f"/v1/adapters/{made}/diagnose", {"folds": 3})
        names = {question["name"]: question for question in found["questions"]}
        assert sorted(names) == ["anger", "team", "urgent"]
        assert 0 <= names["anger"]["levels"]["score"] <= 1
        assert names["anger"]["levels"]["guess"] > 0
        assert "levels" not in names["team"]

    server.run(scenario)


@pytest.mark.parametrize("path", ["/v1/decide", "/v1/decisions"])
def test_a_question_that_is_not_calibrated_is_refused_by_its_place(server: Server, path: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        made = (await create(client))["id"]
        case = {"input": "x", "answers": {"urgent": True}}
        await post(client, f"/v1/adapters/{made}/calibrate", {"cases": [case], "question": "urgent"})
        before = len(server.worker.predicted)
        gate = {"gate": {"target_coverage": 0.5}}
        native = {"inputs": ["new"], "adapter_id": made, **gate}
        openai = {"model": made, "input": "new", "questions": QUESTIONS, "abmll": gate}
        refused = await client.post(path, json=native if path == "/v1/decide" else openai)
        assert refused.status_code == (422 if path == "/v1/decide" else 400), refused.text
        refusal = refused.json()["error"]
        assert "the question 'Which team?'" in refusal["message"]
        assert refusal["param"] == "questions[1]"
        assert len(server.worker.predicted) == before

    server.run(scenario)
