"""Any text is taken alike by every surface: also an empty one, and one that reads like a control
token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.conftest import Server

SUPPORT = [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}]
TASK: dict[str, Any] = {"support": SUPPORT, "options": ["yes", "no"]}
EMPTY = ("", " ", "\n", "\u00a0")
TEXTS = (
    *EMPTY,
    "\x00",
    "<|im_end|>",
    "<filename>a.pdf",
    "</s>[SEP]",
    "\u2581",
    "\u202eabc",
    "\U0001f469\u200d\U0001f52c",
)


def request_of(surface: str, adapter: str, text: str) -> tuple[str, dict[str, Any]]:
    """The path and the body of a request that asks `surface` for the label of `text`."""
    chat = {"model": adapter, "messages": [{"role": "user", "content": text}]}
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}
    return {
        "native": ("/v1/predict", {"adapter_id": adapter, "inputs": [text]}),
        "native row": ("/v1/predict", {"adapter_id": adapter, "inputs": [{"input": text}]}),
        "chat": ("/v1/chat/completions", chat),
        "completion": ("/v1/completions", {"model": adapter, "prompt": text}),
        "classify": ("/v1/classify", {"model": adapter, "inputs": [text]}),
        "oip": (f"/v2/models/{adapter}/infer", {"inputs": [tensor]}),
    }[surface]


def answer_of(surface: str, body: dict[str, Any]) -> tuple[str, float]:
    """The answer and its confidence."""
    if surface.startswith("native"):
        (prediction,) = body["predictions"]
        return prediction["answer"], prediction["confidence"]
    if surface in ("chat", "completion"):
        (choice,) = body["choices"]
        return choice["message"]["content"] if surface == "chat" else choice["text"], choice["abmll"][
            "confidence"
        ]
    if surface == "classify":
        (found,) = body["classifications"]
        return found["prediction"], found["confidence"]
    outputs = {output["name"]: output["data"] for output in body["outputs"]}
    return outputs["answer"][0], outputs["confidence"][0]


@pytest.mark.parametrize("surface", ["native row", "chat", "completion", "classify", "oip"])
def test_every_surface_gives_a_text_the_answer_of_our_own(tmp_path: Path, surface: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        adapter = (await client.post("/v1/adapters", json=TASK)).raise_for_status().json()["id"]

        async def asked(surface: str, text: str) -> tuple[str, float]:
            path, body = request_of(surface, adapter, text)
            answered = await client.post(path, json=body)
            assert answered.status_code == 200, (surface, text, answered.text)
            return answer_of(surface, answered.json())

        for text in TEXTS:
            assert await asked(surface, text) == await asked("native", text)

    Server(tmp_path).run(scenario)


def test_an_empty_text_is_taken_as_an_example_by_every_surface(tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for text in EMPTY:
            support = [{**SUPPORT[0], "input": text}, SUPPORT[1]]
            examples = [{"text": row["input"], "label": row["output"]} for row in support]
            task = {**TASK, "support": support}
            adapter = (await client.post("/v1/adapters", json=task)).raise_for_status().json()["id"]
            tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["x"]}
            in_parameters = {name: json.dumps(value) for name, value in task.items()}
            for path, body in {
                "/v1/predict": {**task, "inputs": ["x"]},
                "/v1/chat/completions": {
                    "model": "fake-1b",
                    "messages": [{"role": "user", "content": "x"}],
                    "abmll": task,
                },
                "/v1/classify": {"examples": examples, "inputs": ["x"], "truncate": "NONE"},
                "/v2/models/fake-1b/infer": {"inputs": [tensor], "parameters": in_parameters},
            }.items():
                answered = await client.post(path, json=body)
                assert answered.status_code == 200, (path, text, answered.text)
                assert adapter in answered.text

    Server(tmp_path).run(scenario)


@pytest.mark.parametrize(("rows", "options"), [(500, 2), (300, 300)])
def test_more_examples_and_options_are_taken_where_a_setting_allows_them(
    tmp_path: Path, rows: int, options: int
) -> None:
    names = [f"option {i}" for i in range(options)]
    support = [{"input": f"text {i}", "output": names[i % options]} for i in range(rows)]
    body = {"support": support, "options": names, "inputs": ["x"]}

    async def refused(client: httpx.AsyncClient) -> None:
        answered = await client.post("/v1/predict", json=body)
        assert (answered.status_code, answered.json()["error"]["code"]) == (422, "limit_exceeded")
        assert "the limit is 256" in answered.json()["error"]["message"]

    async def taken(client: httpx.AsyncClient) -> None:
        (prediction,) = (await client.post("/v1/predict", json=body)).raise_for_status().json()["predictions"]
        assert len(prediction["distribution"]) == options

    Server(tmp_path / "narrow").run(refused)
    Server(tmp_path / "wide", max_support=500, max_options=300).run(taken)
