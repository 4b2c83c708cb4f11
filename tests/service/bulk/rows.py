"""Files of rows for the tests of batches, and the official client."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx
import openai
from openai.types import Batch, FileObject

from tests.service.conftest import Server

OPTIONS = ["yes", "no", "maybe"]
TASK: dict[str, Any] = {
    "support": [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}],
    "options": OPTIONS,
}
PREDICT = "/v1/predict"
Scenario = Callable[[openai.AsyncOpenAI, httpx.AsyncClient], Awaitable[None]]


def row(custom_id: str, body: Any, url: str = PREDICT) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def lines(rows: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def predict_rows(count: int, adapter_id: str, **more: Any) -> list[dict[str, Any]]:
    return [
        row(f"row-{n}", {"adapter_id": adapter_id, "inputs": [f"text {n}"], **more}) for n in range(count)
    ]


def play(server: Server, scenario: Scenario) -> None:
    """Run `scenario` with OpenAI's client, and a plain HTTP client for the same server."""

    async def both(http: httpx.AsyncClient) -> None:
        client = openai.AsyncOpenAI(
            base_url="http://server/v1", api_key="none", http_client=http, max_retries=0
        )
        await scenario(client, http)

    server.run(both)


async def adapter(http: httpx.AsyncClient) -> str:
    response = await http.post("/v1/adapters", json=TASK)
    assert response.status_code in {200, 201}, response.text
    return str(response.json()["id"])


async def upload(client: openai.AsyncOpenAI, content: bytes) -> FileObject:
    return await client.files.create(file=("rows.jsonl", content), purpose="batch")


async def begin(client: openai.AsyncOpenAI, content: bytes, endpoint: str = PREDICT, **more: Any) -> Batch:
    """Upload rows, and begin a batch of them."""
    file = await upload(client, content)
    return await client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,
        completion_window="24h",
        **more,  # type: ignore[arg-type]
    )


async def ended(client: openai.AsyncOpenAI, batch: Batch) -> Batch:
    """Return the batch once it has ended. The timeout of the scenario limits the wait."""
    import asyncio

    while batch.status not in {"completed", "failed", "cancelled", "expired"}:
        await asyncio.sleep(0.01)
        batch = await client.batches.retrieve(batch.id)
    return batch


async def read(client: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """Return the lines of a file; none where there is no file."""
    if file_id is None:
        return []
    content = (await client.files.content(file_id)).content
    assert content.endswith(b"\n") or not content
    return [json.loads(line) for line in content.splitlines()]
