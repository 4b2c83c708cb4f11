"""A byte-order mark before the JSON of a body is ignored, on every surface."""

import json
from codecs import BOM_UTF8, BOM_UTF16_LE
from typing import Any

import httpx
import pytest

from tests.service.conftest import Server

OPTIONS = ["yes", "no"]
SUPPORT = [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}]
HEADERS = {"content-type": "application/json"}
ABMLL = {"support": SUPPORT, "options": OPTIONS}


def bodies(model: str) -> dict[str, dict[str, Any]]:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["x"]}
    examples = [{"text": row["input"], "label": row["output"]} for row in SUPPORT]
    parameters = {"support": json.dumps(SUPPORT), "options": json.dumps(OPTIONS)}
    return {
        "/v1/predict": {"inputs": ["x"], **ABMLL},
        "/v1/adapters": ABMLL,
        "/v1/completions": {"model": model, "prompt": "x", "abmll": ABMLL},
        "/v1/chat/completions": {
            "model": model,
            "messages": [{"role": "user", "content": "x"}],
            "abmll": ABMLL,
        },
        "/v1/classify": {"inputs": ["x"], "examples": examples},
        f"/v2/models/{model}/infer": {"inputs": [tensor], "parameters": parameters},
    }


@pytest.mark.parametrize("number", range(6))
def test_a_byte_order_mark_before_the_json_is_ignored(server: Server, number: int) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        path, body = list(bodies(model).items())[number]
        content = json.dumps(body).encode()
        plain = await client.post(path, content=content, headers=HEADERS)
        assert plain.is_success, plain.text
        marked = await client.post(path, content=BOM_UTF8 + content, headers=HEADERS)
        assert (marked.status_code, marked.json().keys()) == (200, plain.json().keys())
        for wrong in (BOM_UTF8 * 2 + content, BOM_UTF16_LE + json.dumps(body).encode("utf-16-le"), BOM_UTF8):
            refused = await client.post(path, content=wrong, headers=HEADERS)
            assert refused.status_code == 400, refused.text

    server.run(scenario)
