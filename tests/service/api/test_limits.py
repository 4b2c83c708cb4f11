"""Whoever meets a limit learns its number, and the setting that changes it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.schemas import LimitsReport
from service.settings import Settings
from tests.service.conftest import Server, until

SUPPORT = [{"input": text, "output": text[0]} for text in ("a one", "b one", "a two", "b two")]
OPTIONS = ["a", "b"]
BODY = {"support": SUPPORT, "options": OPTIONS, "inputs": ["?"]}
MANY = [{"input": f"number {n}", "output": "a"} for n in range(3)]

# By setting: its value, the path, the body, and what comes before "; the limit is".
OVER: dict[str, tuple[int, str, dict[str, Any], str]] = {
    "max_body_bytes": (1024, "/v1/predict", {**BODY, "inputs": ["x" * 2000]}, "the body is too large"),
    "max_support": (3, "/v1/adapters", {"support": SUPPORT, "options": OPTIONS}, "4 examples"),
    "max_inputs": (2, "/v1/predict", {**BODY, "inputs": ["?"] * 3}, "3 inputs"),
    "max_questions": (
        1,
        "/v1/decisions",
        {"model": "fake-1b", "input": "?", "questions": [{"type": "predicate", "instructions": "?"}] * 2},
        "2 questions",
    ),
    "max_options": (2, "/v1/predict", {**BODY, "options": ["a", "b", "c"]}, "3 options"),
    "max_text_chars": (9, "/v1/predict", {**BODY, "inputs": ["x" * 10]}, "a text of 10 characters"),
    "max_samples": (16, "/v1/predict", {**BODY, "samples": 17}, "17 samples"),
    "max_folds": (2, "/v1/predict", {**BODY, "adapt": {"calibration_folds": 3}}, "3 folds"),
    "max_steps": (8, "/v1/predict", {**BODY, "adapt": {"steps": 9}}, "9 steps"),
    "max_new_tokens": (32, "/v1/predict", {**BODY, "max_new_tokens": 33}, "33 new tokens"),
}
# The same settings by other ways.
ALSO: tuple[tuple[str, int, str, dict[str, Any], str], ...] = (
    ("max_samples", 16, "/v1/predict", {**BODY, "samples": 3, "answers_per_sample": 6},
     "18 texts an input, by sample and answer"),
    ("max_samples", 16, "/v1/adapters/ID/diagnose", {"samples": 17}, "17 samples"),
    ("max_folds", 2, "/v1/adapters/ID/diagnose", {"folds": 3}, "3 folds"),
    ("max_inputs", 2, "/v1/adapters/ID/calibrate", {"examples": MANY}, "3 examples"),
    ("max_inputs", 2, "/v1/adapters/ID/feedback",
     {"feedback": [{"prediction_id": "prd_1", "label": "a"}] * 3}, "3 feedback"),
    ("max_calibration", 2, "/v1/adapters/ID/calibrate", {"examples": MANY}, "3 examples in all"),
)  # fmt: skip
# A context is the model's, what is logged no longer takes labels, and a deadline is a time.
NO_MESSAGE = {"max_prompt_tokens", "max_logged", "deadline_seconds", "prices"}
# By prices: tests/service/engine/test_backlog.py and tests/service/api/test_long_adaptations.py.
ELSEWHERE = {"queue_seconds", "long_deadline_seconds"}


@pytest.mark.parametrize(
    ("setting", "value", "path", "body", "found"),
    [(setting, *row) for setting, row in OVER.items()] + list(ALSO),
)
def test_a_limit_names_its_number_and_its_setting(
    tmp_path: Path, setting: str, value: int, path: str, body: dict[str, Any], found: str
) -> None:
    server = Server(tmp_path, **{setting: value})

    async def scenario(client: httpx.AsyncClient) -> None:
        made = await client.post("/v1/adapters", json={"support": SUPPORT[:3], "options": OPTIONS})
        adapter_id = made.json().get("id", "none")
        refused = await client.post(path.replace("ID", adapter_id), json=body)
        invalid = 400 if path == "/v1/decisions" else 422
        assert refused.status_code == (413 if setting == "max_body_bytes" else invalid)
        limit = f"{value} bytes" if setting == "max_body_bytes" else str(value)
        assert refused.json()["error"]["message"] == f"{found}; the limit is {limit} (setting {setting})"

    server.run(scenario)


def test_more_names_are_refused_by_number_and_setting(tmp_path: Path) -> None:
    server = Server(tmp_path, max_names=1)

    async def scenario(client: httpx.AsyncClient) -> None:
        made = await client.post("/v1/adapters", json={"support": SUPPORT, "options": OPTIONS})
        body = {"adapter_id": made.json()["id"]}
        assert (await client.put("/v1/names/first", json=body)).status_code == 200
        assert (await client.delete("/v1/names/first")).status_code == 200
        refused = await client.put("/v1/names/second", json=body)
        assert refused.json()["error"]["message"] == (
            "1 names, deleted ones included; the limit is 1 (setting max_names)"
        )
        assert (await client.put("/v1/names/first", json=body)).status_code == 200

    server.run(scenario)


def test_a_full_queue_and_full_memory_name_their_settings(tmp_path: Path) -> None:
    server = Server(tmp_path, queue_limit=1, adapter_memory_bytes=10)

    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.adapt_gate.clear()
        working = asyncio.create_task(client.post("/v1/predict", json=BODY))
        await until(lambda: len(server.worker.adapted) == 1)
        busy = await client.post("/v1/predict", json=BODY)
        message = "the server is busy with 1 requests; the limit is 1 (setting queue_limit)"
        assert busy.json()["error"]["message"] == message
        server.worker.adapt_gate.set()
        made = (await working).json()["adapter_id"]
        full = await client.post(f"/v1/adapters/{made}/pin")
        size = (await server.engine.adapter(made)).posterior.nbytes
        message = f"pinned adapters would take {size} bytes of memory; the limit is 10 (setting adapter_memory_bytes)"
        assert full.json()["error"]["message"] == message

    server.run(scenario)


def test_a_deadline_names_its_setting(tmp_path: Path) -> None:
    server = Server(tmp_path)

    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.adapt_gate.clear()
        server.set_deadline(0.1)
        late = await client.post("/v1/predict", json=BODY)
        assert late.json()["error"]["message"].startswith("not done in 0.1 s (setting deadline_seconds)")
        server.worker.adapt_gate.set()

    server.run(scenario)


def test_every_limit_that_is_shown_is_tried_here() -> None:
    tried = {*OVER, *(row[0] for row in ALSO), "queue_limit", "max_names"} | ELSEWHERE
    assert set(LimitsReport.model_fields) - NO_MESSAGE == tried
    assert tried <= set(Settings.model_fields)
