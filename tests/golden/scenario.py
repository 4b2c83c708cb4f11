"""Requests over every surface, and their answers without what differs from run to run.

`python -m tests.golden.scenario FILE` writes the answers of this checkout to FILE. The model
computes in fp32, so that the answers are the same on every machine up to rounding.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx

from service.schemas import demo
from tests.golden.application import running

BINARY = {
    "support": [
        {"input": "I was charged twice.", "output": "billing"},
        {"input": "My parcel is late.", "output": "delivery"},
        {"input": "Please refund last month.", "output": "billing"},
        {"input": "The courier went to the wrong house.", "output": "delivery"},
        {"input": "The fee on my invoice is wrong.", "output": "billing"},
        {"input": "Where is my package?", "output": "delivery"},
    ],
    "options": ["billing", "delivery"],
}
CHOICE = {
    "support": [
        {
            "input": "Absorbing sunlight causes objects to what? \n (A) freeze (B) warm up",
            "output": "warm up",
            "options": ["freeze", "warm up"],
        },
        {
            "input": "What do plants need to grow? \n (A) light (B) coal (C) plastic",
            "output": "light",
            "options": ["light", "coal", "plastic"],
        },
        {
            "input": "Which of these is a liquid? \n (A) milk (B) sand (C) iron",
            "output": "milk",
            "options": ["milk", "sand", "iron"],
        },
        {
            "input": "What falls from clouds? \n (A) rain (B) stones",
            "output": "rain",
            "options": ["rain", "stones"],
        },
    ]
}
TEXT = {
    "support": [
        {"input": "The capital of France?", "output": "Paris"},
        {"input": "The capital of Italy?", "output": "Rome"},
        {"input": "The capital of Spain?", "output": "Madrid"},
    ]
}
LABELLED = [
    ("My card was debited two times.", "billing"),
    ("The box never came.", "delivery"),
    ("I want my money back.", "billing"),
    ("Tracking has not moved for a week.", "delivery"),
    ("Why is the bill so high?", "billing"),
    ("The driver left it in the rain.", "delivery"),
    ("A receipt for my tax office, please.", "billing"),
    ("It was sent to my old address.", "delivery"),
    ("The coupon was not taken off.", "billing"),
    ("Half of the order is missing.", "delivery"),
    ("I paid but it says unpaid.", "billing"),
    ("When will the van arrive?", "delivery"),
]
# Seconds, times, ids of requests and moments, and ids that depend on last digits of confidences.
VOLATILE = re.compile(
    r"request_id|timings|created|release_date|.*_seconds|id|prediction_id|calibration_id|explored|digest"
    r"|.*_wealth|prices"
)
ADAPTER = re.compile(r"adp_[0-9a-f]{32}")


async def play(client: httpx.AsyncClient) -> dict[str, Any]:
    """Return the answers by the names of their requests."""
    answers: dict[str, Any] = {}

    async def ask(name: str, method: str, path: str, body: Any = None) -> dict[str, Any]:
        response = await client.request(method, path, json=body)
        kind = response.headers["content-type"].partition(";")[0]
        found = response.json() if kind == "application/json" else events(response.text)
        answers[name] = {"status": response.status_code, "body": stable(found)}
        return dict(response.json()) if kind == "application/json" else {}

    await ask("demo", "POST", "/v1/predict", demo.predict_body())
    made = await ask("create", "POST", "/v1/adapters", {**BINARY, "seed": 3})
    named = {"adapter_id": made["id"], "inputs": ["The invoice is late.", "Hello", "Is the van near?"]}
    await ask("again", "POST", "/v1/adapters", {**BINARY, "seed": 3})
    await ask("get", "GET", f"/v1/adapters/{made['id']}")
    await ask("mean", "POST", "/v1/predict", {**named, "samples": 0})
    await ask("samples", "POST", "/v1/predict", {**named, "samples": 6, "seed": 5})
    gate = {"min_confidence": 0.6, "min_margin": 0.1, "max_mutual_information": 0.4, "min_typicality": 0.2}
    await ask("auto", "POST", "/v1/predict", {**named, "samples": "auto", "gate": gate})
    await ask("stream", "POST", "/v1/predict", {**named, "samples": 16, "gate": gate, "stream": True})
    await ask("choice", "POST", "/v1/predict", {
        **CHOICE,
        "inputs": [{"input": "What is cold? \n (A) ice (B) fire", "options": ["ice", "fire"]}],
    })  # fmt: skip
    await ask("text", "POST", "/v1/predict", {
        **TEXT, "inputs": ["The capital of Japan?", "The capital of Greece?"],
        "samples": 4, "answers_per_sample": 2, "max_new_tokens": 6,
    })  # fmt: skip
    folds = await ask(
        "folds", "POST", "/v1/adapters", {**BINARY, "adapt": {"calibration_folds": 2, "steps": 3}}
    )
    await ask("own temperature", "POST", "/v1/predict", {**named, "adapter_id": folds["id"]})
    await ask("diagnose", "POST", f"/v1/adapters/{made['id']}/diagnose", {"folds": 2, "samples": 4})
    examples = [{"input": text, "output": label} for text, label in LABELLED]
    calibrated = f"/v1/adapters/{made['id']}"
    await ask("calibrate", "POST", f"{calibrated}/calibrate", {"examples": examples, "samples": 4})
    await ask("calibration", "GET", f"{calibrated}/calibration")
    gated = {**named, "samples": 4, "gate": {"target_coverage": 0.5}, "set": {"alpha": 0.2}}
    noted = await ask("certified", "POST", "/v1/predict", gated)
    rows = [{"prediction_id": p["prediction_id"], "label": "billing"} for p in noted["predictions"]]
    await ask("feedback", "POST", f"{calibrated}/feedback", {"feedback": rows})
    await ask("not certified", "POST", "/v1/predict", {**named, "samples": 4, "gate": {"target_error": 0.01}})
    await ask("other samples", "POST", "/v1/predict", {**gated, "samples": 8})
    await ask("chat", "POST", "/v1/chat/completions", {
        "model": made["id"], "messages": [{"role": "user", "content": "Where is my parcel?"}],
        "logprobs": True, "top_logprobs": 2, "abmll": {"gate": {"min_confidence": 0.99}, "samples": 4},
    })  # fmt: skip
    await ask("completion", "POST", "/v1/completions", {
        "model": made["id"], "prompt": ["Where is my parcel?"], "logprobs": 2, "abmll": {"samples": 4},
    })  # fmt: skip
    await ask("chat stream", "POST", "/v1/chat/completions", {
        "model": made["id"], "messages": [{"role": "user", "content": "Where is my parcel?"}],
        "stream": True, "abmll": {"samples": 2},
    })  # fmt: skip
    texts = [{"text": row["input"], "label": row["output"]} for row in BINARY["support"]]  # type: ignore[index]
    await ask("classify", "POST", "/v1/classify", {"inputs": ["A wrong fee."], "examples": texts})
    await ask("infer", "POST", f"/v2/models/{made['id']}/infer", {
        "inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["A wrong fee.", "Hello"]}],
        "parameters": {"min_confidence": 0.7, "samples": 4},
    })  # fmt: skip
    for path in ("/v1/limits", "/v1/models", "/v2", f"/v2/models/{made['id']}"):
        await ask(path.replace(made["id"], "ID"), "GET", path)
    for name, body in refused(named).items():
        await ask(f"refused: {name}", "POST", "/v1/predict", body)
    await ask("unknown", "GET", "/v1/adapters/adp_00000000")
    await ask("delete", "DELETE", calibrated)
    await ask("deleted", "GET", f"{calibrated}/calibration")
    return answers


def refused(named: dict[str, Any]) -> dict[str, Any]:
    """Return bodies that are refused before any model work, by name."""
    alike = {"support": [{"input": "a", "output": "x"}, {"input": "b", "output": "x"}], "options": ["x", "y"]}
    return {
        "both sources": {**BINARY, **named},
        "unknown field": {**named, "sample": 3},
        "too many samples": {**named, "samples": 65},
        "no adapter": {**named, "adapter_id": "adp_00000000"},
        "another option": {
            "support": [{"input": "a", "output": "z"}],
            "options": ["x", "y"],
            "inputs": ["a"],
        },
        "one class": {**alike, "inputs": ["a"]},
        "a gate on text": {**named, "gate": {"max_semantic_entropy": 1.0}},
        "long": {**named, "inputs": ["word " * 9000]},
        "too long for the context": {**named, "inputs": ["I am " * 6000]},
        "no calibrated confidence": {**named, "confidence": "calibrated"},
        "other model": {**named, "model": "gpt-5"},
        "calibrated without an adapter": {**BINARY, "inputs": ["a"], "log": True},
    }


def events(text: str) -> list[Any]:
    """Return a stream's events with data, without refinements, whose number depends on time."""
    rows = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields and fields.get("event") != "refinement":
            data = json.loads(fields["data"]) if fields["data"] != "[DONE]" else "[DONE]"
            rows.append([fields.get("event"), data])
    return rows


def stable(value: Any) -> Any:
    """Return `value` without what differs from run to run.

    Ids of adapters stay: they depend on the content only.
    """
    if isinstance(value, dict):
        return {
            key: stable(inner)
            for key, inner in value.items()
            if not VOLATILE.fullmatch(key) or ADAPTER.fullmatch(str(inner))
        }
    if isinstance(value, list):
        return [stable(inner) for inner in value]
    return value


def differences(found: Any, expected: Any, tolerance: float, where: str = "") -> list[str]:
    """Return the places where two answers differ, numbers by more than `tolerance`."""
    if isinstance(found, float | int) and isinstance(expected, float | int):
        near = abs(found - expected) <= tolerance * max(1.0, abs(expected))
        return [] if near else [f"{where}: {found} is not {expected}"]
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = [f"{where}: {sorted(set(found) ^ set(expected))}"] if set(found) != set(expected) else []
        pairs = [(found[key], expected[key], f"{where}/{key}") for key in found if key in expected]
        return keys + [row for a, b, place in pairs for row in differences(a, b, tolerance, place)]
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        triples = [(a, b, f"{where}/{i}") for i, (a, b) in enumerate(zip(found, expected, strict=True))]
        return [row for a, b, place in triples for row in differences(a, b, tolerance, place)]
    if isinstance(found, str) and isinstance(expected, str):
        found, expected = (text_without_numbers(text) for text in (found, expected))
    return [] if found == expected else [f"{where}: {found!r} is not {expected!r}"]


def text_without_numbers(text: str) -> str:
    """Return a message without its measured numbers."""
    return re.sub(r"\d+\.\d+", "#", text)


Running = Callable[[Path], AbstractAsyncContextManager[httpx.AsyncClient]]


def answers_now() -> dict[str, Any]:
    """Return the answers of this checkout."""

    async def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            async with running(Path(folder)) as client:
                return await play(client)

    return asyncio.run(run())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(answers_now(), indent=1, sort_keys=True) + "\n")
