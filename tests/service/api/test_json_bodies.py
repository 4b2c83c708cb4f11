"""Bodies of every surface: a byte-order mark is ignored, and what is not plain UTF-8 is named."""

import gzip
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
        "/v1/decisions": {
            "model": model,
            "input": "x",
            "questions": [{"type": "predicate", "instructions": "?"}],
        },
        "/v1/systemone": {
            "model": model,
            "state": "x",
            "questions": {"q": {"type": "noul", "instructions": "?"}},
        },
        f"/v2/models/{model}/infer": {"inputs": [tensor], "parameters": parameters},
    }


@pytest.mark.parametrize("number", range(8))
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


@pytest.mark.parametrize("number", range(8))
def test_a_compressed_body_and_one_that_is_not_utf8_are_named(server: Server, number: int) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        path, body = list(bodies(model).items())[number]
        content = json.dumps(body).encode()
        for encoding in ("gzip", "br", "deflate, gzip"):
            compressed = await client.post(
                path, content=gzip.compress(content), headers=HEADERS | {"content-encoding": encoding}
            )
            assert compressed.status_code == 415, compressed.text
            assert f"without the content-encoding {encoding!r}" in compressed.text
        plain = await client.post(path, content=content, headers=HEADERS | {"content-encoding": "identity"})
        assert plain.is_success
        for charset, byte in (("utf-16", "FF at 0"), ("latin-1", "E9 at")):
            encoded = json.dumps(body | {"user": "caf\u00e9"}, ensure_ascii=False).encode(charset)
            headers = {"content-type": f"application/json; charset={charset}"}
            refused = await client.post(path, content=encoded, headers=headers)
            assert refused.status_code == 400
            assert f"the body is not UTF-8 (byte {byte}" in refused.text

    server.run(scenario)


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/decide", "/v1/systemone", "/v1/classify"])
@pytest.mark.parametrize("wrong", ["unknown fields", "wrong items"])
def test_more_wrong_fields_than_anyone_reads_are_counted_and_not_described(
    server: Server, path: str, wrong: str
) -> None:
    field = "questions" if path == "/v1/systemone" else "inputs"
    items: Any = {str(n): 0 for n in range(20_000)} if path == "/v1/systemone" else [0] * 20_000
    body = {str(n): 0 for n in range(20_000)} if wrong == "unknown fields" else {field: items}
    refused = server.post(path, body)
    assert refused.status_code in {400, 422}
    assert len(refused.content) < 500
    assert "fields of the body are wrong or unknown: send fewer than 1000 of them" in refused.text
