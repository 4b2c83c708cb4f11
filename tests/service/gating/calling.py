"""Calls of an adapter's gates by HTTP, on the fake model.

Inputs determine its answers, so tests choose which of them are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx

SUPPORT = [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}]
OPTIONS = ["yes", "no", "perhaps"]
TARGET = {"target_error": 0.2, "delta": 0.1}
Predictions = list[dict[str, Any]]


class Caller:
    """One adapter on a running server."""

    def __init__(self, client: httpx.AsyncClient, adapter_id: str) -> None:
        self.client, self.id = client, adapter_id

    @classmethod
    async def of(cls, client: httpx.AsyncClient, options: Sequence[str] = OPTIONS) -> Caller:
        body = {"support": SUPPORT, "options": options}
        return cls(client, (await client.post("/v1/adapters", json=body)).json()["id"])

    async def post(self, what: str, body: Any) -> httpx.Response:
        return await self.client.post(f"/v1/adapters/{self.id}/{what}", json=body)

    async def ask(self, inputs: Sequence[str], **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/predict", json={"adapter_id": self.id, "inputs": inputs, **fields})

    async def predictions(self, inputs: Sequence[str], **fields: Any) -> Predictions:
        answer = await self.ask(inputs, **fields)
        assert answer.status_code == 200, answer.text
        found: Predictions = answer.json()["predictions"]
        return found

    async def examples(self, inputs: Sequence[str], wrong: Sequence[int] = ()) -> list[dict[str, str]]:
        """Return examples labelled so that the model is right except at `wrong`."""
        answers = [p["answer"] for p in await self.predictions(inputs)]
        return [
            {"input": text, "output": other(answer) if i in wrong else answer}
            for i, (text, answer) in enumerate(zip(inputs, answers, strict=True))
        ]

    async def calibrate(
        self, inputs: Sequence[str], wrong: Sequence[int] = (), **fields: Any
    ) -> dict[str, Any]:
        answer = await self.post(
            "calibrate", {"examples": await self.examples(inputs, wrong), "options": OPTIONS, **fields}
        )
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def calibration(self) -> httpx.Response:
        return await self.client.get(f"/v1/adapters/{self.id}/calibration")

    async def label(self, served: Predictions, *, right: bool) -> httpx.Response:
        rows = [
            {"prediction_id": p["prediction_id"], "label": p["answer"] if right else other(p["answer"])}
            for p in served
        ]
        return await self.post("feedback", {"feedback": rows})


def other(answer: str) -> str:
    return next(option for option in OPTIONS if option != answer)


def texts(name: str, n: int) -> list[str]:
    return [f"{name} {i}" for i in range(n)]


def error(response: httpx.Response, status: int = 422) -> dict[str, Any]:
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()["error"]
    return found
