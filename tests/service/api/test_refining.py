"""`adapt.refine` on every surface: the answer of the instant adapter says which one is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.conftest import Server
from tests.service.engine.test_refining import SteppingWorker, refined

BASE = "fake-1b"
SUPPORT = [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}]
PREDICATE = {"type": "predicate", "name": "a", "instructions": "?"}
CASES = [{"answers": {"a": True}, "input": "old mail"}, {"answers": {"a": False}, "input": "mail"}]
STATES = [{"answers": case["answers"], "state": case["input"]} for case in CASES]
Details = Callable[[Any], Any]


def below(answer: Any) -> Any:
    return answer["abmll"]


def itself(answer: Any) -> Any:
    return answer


def parameters(answer: Any) -> Any:
    return answer["parameters"]


def chat(adapt: Any) -> dict[str, Any]:
    extras = {"support": SUPPORT, "options": ["yes", "no"], "adapt": adapt}
    return {"model": BASE, "messages": [{"role": "user", "content": "x"}], "abmll": extras}


SURFACES: dict[str, tuple[str, Callable[[Any], dict[str, Any]], Details, str]] = {
    "predict": (
        "/v1/predict",
        lambda adapt: {"support": SUPPORT, "options": ["yes", "no"], "inputs": ["x"], "adapt": adapt},
        itself,
        "adapt.refine",
    ),
    "decide": (
        "/v1/decide",
        lambda adapt: {
            "inputs": ["x"], "questions": [PREDICATE], "cases": CASES, "adapt": adapt,
        },
        itself,
        "adapt.refine",
    ),
    "adapters": (
        "/v1/adapters",
        lambda adapt: {"questions": [PREDICATE], "cases": CASES, "adapt": adapt},
        lambda answer: {**answer, "adapter_id": answer["id"]},
        "adapt.refine",
    ),
    "decisions": (
        "/v1/decisions",
        lambda adapt: {
            "model": BASE, "input": "x", "questions": [PREDICATE],
            "abmll": {"cases": CASES, "adapt": adapt},
        },
        below,
        "abmll.adapt.refine",
    ),
    "systemone": (
        "/v1/systemone",
        lambda adapt: {
            "model": BASE, "state": "x", "questions": {"a": {"type": "noul", "instructions": "?"}},
            "abmll": {"cases": STATES, "adapt": adapt},
        },
        below,
        '"abmll","adapt","refine"',
    ),
    "chat": ("/v1/chat/completions", chat, below, "abmll.adapt.refine"),
    "classify": (
        "/v1/classify",
        lambda adapt: {
            "examples": [{"text": row["input"], "label": row["output"]} for row in SUPPORT], "inputs": ["x"],
            "model": BASE, "abmll": {"adapt": adapt},
        },
        below,
        "abmll.adapt.refine",
    ),
    "infer": (
        f"/v2/models/{BASE}/infer",
        lambda adapt: {
            "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["x"]}],
            "parameters": {"support": json.dumps(SUPPORT), "options": '["yes", "no"]', **adapt},
        },
        parameters,
        "parameters.refine",
    ),
}  # fmt: skip


@pytest.mark.parametrize("surface", SURFACES)
def test_an_answer_says_which_adapter_is_made_and_only_as_long_as_it_is(tmp_path: Path, surface: str) -> None:
    path, body, details, field = SURFACES[surface]
    server = Server(tmp_path, SteppingWorker())

    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        answers = [await client.post(path, json=body({"refine": True, "steps": 2})) for _ in range(2)]
        first, second = (details(answer.json()) for answer in answers)
        assert first["refines_to"] == second["refines_to"] != first["adapter_id"] == second["adapter_id"]
        await refined(server)
        for more in ({"refine": True}, {}):
            answer = await client.post(path, json=body({"steps": 2, **more}))
            assert details(answer.json())["adapter_id"] == first["refines_to"]
            assert "refines_to" not in answer.text
        assert server.worker.steps == [0, 2]
        wrong = await client.post(path, json=body({"effort": "instant", "refine": True}))
        assert wrong.status_code in (400, 422)
        assert "nothing to refine" in wrong.text
        assert field in wrong.text

    server.run(scenario)


def test_a_stream_says_at_its_end_which_adapter_is_made(tmp_path: Path) -> None:
    server = Server(tmp_path, SteppingWorker())
    path, body, *_ = SURFACES["predict"]

    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        stream = await client.post(path, json={**body({"refine": True}), "stream": True})
        events = [event.partition("\ndata: ") for event in stream.text.strip().split("\n\n")]
        found = {name.removeprefix("event: "): json.loads(data) for name, _, data in events}
        (full,) = server.engine._refining._tasks
        assert "step" not in found
        assert found["done"]["adapter_id"] == found["adapter"]["adapter_id"] != full
        assert found["done"]["refines_to"] == full

    server.run(scenario)


def test_an_adapter_that_is_named_is_not_refined(tmp_path: Path) -> None:
    server = Server(tmp_path, SteppingWorker())
    path, body, *_ = SURFACES["infer"]

    async def scenario(client: httpx.AsyncClient) -> None:
        made = (await client.post(path, json=body({}))).json()["parameters"]["adapter_id"]
        texts = body({})["inputs"]
        named = f"/v2/models/{made}/infer"
        assert (await client.post(named, json={"inputs": texts})).status_code == 200
        refused = await client.post(named, json={"inputs": texts, "parameters": {"refine": True}})
        assert "is already fitted" in refused.text

    server.run(scenario)
