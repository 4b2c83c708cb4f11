"""Bad input is answered with the error object, before any model work."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.conftest import Server
from tests.service.fakes import MAX_TOKENS

SUPPORT = [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}]
GOOD: dict[str, Any] = {"support": SUPPORT, "options": ["yes", "no"], "inputs": ["fine"]}
LIMITS = {
    "max_support": 4,
    "max_inputs": 3,
    "max_options": 3,
    "max_text_chars": 300,
    "max_samples": 32,
    "max_steps": 8,
}


def changed(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in {**GOOD, **fields}.items() if value is not ...}


def row(**fields: Any) -> dict[str, Any]:
    return changed(support=[*SUPPORT, {"input": "x", "output": "yes", **fields}])


KINDS_OF_SAMPLES = "Input should be an integer from 0 to 64, or 'auto'"
KINDS_OF_INPUTS = "Input should be a text, or an object with 'input' and 'options'"
# (body, status, code, param, a part of the message)
REFUSED = {
    "empty support": (changed(support=[]), 422, "invalid_support", "support", "empty"),
    "one-class support": (changed(support=[SUPPORT[0]] * 2), 422, "invalid_support", "support", "two classes"),
    "mixed support": (
        changed(options=..., support=[SUPPORT[0], {**SUPPORT[1], "options": ["yes", "no"]}]),
        422, "invalid_support", "support", "some have none",
    ),
    "blank output": (changed(options=..., support=[{"input": "a", "output": " "}]), 422, "invalid_support", "support", "empty"),
    "output outside the options": (row(output="maybe"), 422, "invalid_options", "support[2].output", "'maybe'"),
    "output outside its own options": (
        row(output="yes", options=["a", "b"]), 422, "invalid_options", "support[2].output", "'yes'",
    ),
    "duplicate options": (changed(options=["yes", "no", "no"]), 422, "invalid_options", "support[0].options", "repeated"),
    "duplicate options of an input": (
        changed(inputs=["a", {"input": "x", "options": ["a", "a "]}]), 422, "invalid_options", "inputs[1]", "'a' and 'a ' differ",
    ),
    "blank option": (changed(options=["yes", "no", ""]), 422, "invalid_options", "support[0].options", "empty"),
    "one option": (changed(options=["yes"]), 422, "invalid_options", "support[0].options", "at least two"),
    "one option of an input": (
        changed(inputs=[{"input": "x", "options": ["a"]}]), 422, "invalid_options", "inputs[0]", "at least two",
    ),
    "options missing where the support has different ones": (
        changed(
            options=..., support=[{**SUPPORT[0], "options": ["yes", "no"]}, {**SUPPORT[1], "options": ["no", "perhaps"]}],
        ),
        422, "invalid_options", "inputs[0].options", "differ",
    ),
    "no inputs": (changed(inputs=[]), 422, "invalid_request", "inputs", "at least 1"),
    "inputs missing": (changed(inputs=...), 422, "invalid_request", "inputs", "required"),
    "too many examples": (changed(support=SUPPORT * 3), 422, "limit_exceeded", "support", "limit is 4"),
    "too many inputs": (changed(inputs=["a"] * 4), 422, "limit_exceeded", "inputs", "limit is 3"),
    "too many options": (
        changed(options=["yes", "no", "a", "b"]), 422, "limit_exceeded", "support[0].options", "limit is 3",
    ),
    "an input with too many characters": (changed(inputs=["a" * 301]), 422, "limit_exceeded", "inputs[0]", "limit is 300"),
    "an example with too many characters": (row(input="a" * 301), 422, "limit_exceeded", "support[2]", "limit is 300"),
    "an input beyond the context": (
        changed(inputs=["a", "b" * (MAX_TOKENS - 2)]), 422, "prompt_too_long", "inputs[1]", f"at most {MAX_TOKENS}",
    ),
    "an example beyond the context": (
        row(input="a" * (MAX_TOKENS - 2)), 422, "prompt_too_long", "support[2].input", f"at most {MAX_TOKENS}",
    ),
    "no room to generate": (
        changed(options=..., inputs=["a" * (MAX_TOKENS - 31)]), 422, "prompt_too_long", "inputs[0]", f"at most {MAX_TOKENS}",
    ),
    "an unknown adapter": (
        {"adapter_id": "adp_" + "0" * 32, "inputs": ["x"]}, 404, "unknown_adapter", "adapter_id", "adp_000",
    ),
    "a path as an adapter": ({"adapter_id": "../../etc", "inputs": ["x"]}, 404, "unknown_adapter", "adapter_id", "etc"),
    "both adapter and support": (changed(adapter_id="adp_0"), 422, "invalid_request", None, "exactly one"),
    "neither adapter nor support": ({"inputs": ["x"]}, 422, "invalid_request", None, "exactly one"),
    "adapt settings for a finished adapter": (
        {"adapter_id": "adp_0", "inputs": ["x"], "adapt": {"steps": 1}}, 422, "invalid_request", None, "already fitted",
    ),
    "an unknown model": (changed(model="gpt-9"), 404, "unknown_model", "model", "fake-1b"),
    "an unknown field": (changed(smaples=3), 422, "invalid_request", "smaples", "not permitted"),
    "an unknown field of a row": (row(label="yes"), 422, "invalid_request", "support[2].label", "not permitted"),
    "an unknown field of an input": (
        changed(inputs=[{"input": "x", "text": "y"}]), 422, "invalid_request", "inputs[0].text", "not permitted",
    ),
    "an unknown adapt setting": (changed(adapt={"rank": 4}), 422, "invalid_request", "adapt.rank", "not permitted"),
    "samples below": (changed(samples=-1), 422, "invalid_request", "samples", "greater than or equal to 0"),
    "samples above": (changed(samples=65), 422, "invalid_request", "samples", "less than or equal to 64"),
    "samples over this server's limit": (changed(samples=33), 422, "limit_exceeded", "samples", "limit is 32"),
    "samples as text": (changed(samples="5"), 422, "invalid_request", "samples", KINDS_OF_SAMPLES),
    "samples in capitals": (changed(samples="AUTO"), 422, "invalid_request", "samples", KINDS_OF_SAMPLES),
    "samples in a list": (changed(samples=["auto"]), 422, "invalid_request", "samples", KINDS_OF_SAMPLES),
    "samples as a fraction": (changed(samples=1.5), 422, "invalid_request", "samples", KINDS_OF_SAMPLES),
    "samples as a truth value": (changed(samples=True), 422, "invalid_request", "samples", KINDS_OF_SAMPLES),
    "samples of null": (changed(samples=None), 422, "invalid_request", "samples", KINDS_OF_SAMPLES),
    "a huge seed": (changed(seed=10**400), 422, "invalid_request", "seed", "less than or equal"),
    "no steps": (changed(adapt={"steps": 0}), 422, "invalid_request", "adapt.steps", "greater than or equal to 1"),
    "too many steps": (changed(adapt={"steps": 9}), 422, "limit_exceeded", "adapt.steps", "limit is 8"),
    "a learning rate of zero": (
        changed(adapt={"learning_rate": 0}), 422, "invalid_request", "adapt.learning_rate", "greater than 0",
    ),
    "a gate out of range": (
        changed(gate={"min_confidence": 1.5}), 422, "invalid_request", "gate.min_confidence", "less than or equal to 1",
    ),
    "an input of the wrong type": (changed(inputs=[7]), 422, "invalid_request", "inputs[0]", KINDS_OF_INPUTS),
    "an input as a list": (changed(inputs=[["fine"]]), 422, "invalid_request", "inputs[0]", KINDS_OF_INPUTS),
    "inputs as one text": (changed(inputs="fine"), 422, "invalid_request", "inputs", "valid list"),
    "a body that is a list": ([GOOD], 422, "invalid_request", None, "object"),
    "too many new tokens": (changed(max_new_tokens=1000), 422, "limit_exceeded", "max_new_tokens", "limit is 256"),
}  # fmt: skip

# (body, status, code): bodies that no JSON encoder writes
RAW = {
    "NaN": (b'{"inputs": ["x"], "adapter_id": "a", "samples": NaN}', 400, "malformed_json"),
    "Infinity": (b'{"inputs": ["x"], "adapter_id": "a", "gate": {"min_margin": Infinity}}', 400, "malformed_json"),
    "a number beyond doubles": (
        b'{"inputs": ["x"], "adapter_id": "a", "gate": {"max_mutual_information": 1e999}}', 422, "invalid_request",
    ),
    "no JSON": (b"{", 400, "malformed_json"),
    "nothing": (b"", 400, "malformed_json"),
    "invalid UTF-8": (b'{"inputs": ["\xff"]}', 400, "malformed_json"),
    "half a surrogate pair": (b'{"inputs": ["\\ud800"], "adapter_id": "a"}', 400, "malformed_json"),
    "bottomless nesting": (b"[" * 100_000, 400, "malformed_json"),
}  # fmt: skip


def check_error(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert list(error) == ["code", "message", "param", "request_id"]
    assert error["code"] == code
    assert error["request_id"] == response.headers["x-request-id"]
    return error


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_request_is_refused_before_any_model_work(tmp_path: Path, case: str) -> None:
    body, status, code, param, message = REFUSED[case]
    server = Server(tmp_path, **LIMITS)
    error = check_error(server.post("/v1/predict", body), status, code)
    assert error["param"] == param
    assert message in error["message"]
    assert (server.worker.adapted, server.worker.predicted) == ([], [])


ABOUT_THE_ADAPTER = [
    case for case, (*_, param, _) in REFUSED.items() if param and param.startswith(("support", "adapt."))
]


@pytest.mark.parametrize("case", ABOUT_THE_ADAPTER)
def test_creating_an_adapter_refuses_the_same(tmp_path: Path, case: str) -> None:
    body, status, code, param, message = REFUSED[case]
    server = Server(tmp_path, **LIMITS)
    body = {name: value for name, value in body.items() if name != "inputs"}
    error = check_error(server.post("/v1/adapters", body), status, code)
    assert error["param"] == param
    assert message in error["message"]
    assert server.worker.adapted == []


def test_bodies_that_are_not_json_are_refused(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for name, (body, status, code) in RAW.items():
            response = await client.post(
                "/v1/predict", content=body, headers={"content-type": "application/json"}
            )
            assert check_error(response, status, code)["message"], name

    server.run(scenario)


@pytest.mark.parametrize(
    "media_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"]
)
def test_a_body_that_is_not_declared_as_json_is_415(server: Server, media_type: str | None) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        headers = {"content-type": media_type} if media_type else {}
        response = await client.post("/v1/predict", content=json.dumps(GOOD), headers=headers)
        assert "application/json" in check_error(response, 415, "unsupported_media_type")["message"]

    server.run(scenario)


def test_a_declared_charset_is_accepted(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        headers = {"content-type": "Application/JSON; charset=utf-8"}
        assert (
            await client.post("/v1/predict", content=json.dumps(GOOD), headers=headers)
        ).status_code == 200

    server.run(scenario)


def test_a_body_over_the_limit_is_413_by_its_declared_length_and_by_what_arrives(tmp_path: Path) -> None:
    server = Server(tmp_path, max_body_bytes=2000)
    read: list[int] = []

    async def endless() -> AsyncIterator[bytes]:
        while len(read) < 100:
            read.append(1)
            yield b" " * 500

    async def scenario(client: httpx.AsyncClient) -> None:
        headers = {"content-type": "application/json"}
        declared = await client.post("/v1/predict", json=changed(inputs=["a" * 2000]))
        assert "2000 bytes" in check_error(declared, 413, "body_too_large")["message"]
        streamed = await client.post("/v1/predict", content=endless(), headers=headers)
        check_error(streamed, 413, "body_too_large")
        padded = json.dumps(GOOD).encode().ljust(2000)
        assert (await client.post("/v1/predict", content=padded, headers=headers)).status_code == 200

    server.run(scenario)


@pytest.mark.parametrize(
    ("path", "media_type", "status"),
    [
        ("/v1/predict", "text/plain", 415),  # the type of the body is checked before its length
        ("/v1/predict", "application/json", 413),
        ("/v1/adapters/adp_0/diagnose", "application/json", 413),
        ("/v1/adapters/adp_0/pin", "text/plain", 404),  # a route without a body does not read it
        ("/nope", "application/json", 404),
    ],
)
@pytest.mark.parametrize("declared", [True, False])
def test_only_routes_that_read_a_body_refuse_it(
    tmp_path: Path, path: str, media_type: str, status: int, declared: bool
) -> None:
    server = Server(tmp_path, max_body_bytes=2000)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 500

    async def scenario(client: httpx.AsyncClient) -> None:
        content = b" " * 5000 if declared else chunks()
        response = await client.post(path, content=content, headers={"content-type": media_type})
        assert response.status_code == status, response.text

    server.run(scenario)


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/chat/completions", {"error": {"message", "type", "param", "code"}}),
        ("/v1/classify", {"message", "id"}),
        ("/v1/decisions", {"error": {"message", "type", "param", "code"}}),
        ("/v1/systemone", {"detail"}),
        ("/v2/models/adp_0/infer", {"error"}),
    ],
)
def test_a_streamed_body_over_the_limit_gets_the_error_of_its_surface(
    tmp_path: Path, path: str, shape: Any
) -> None:
    server = Server(tmp_path, max_body_bytes=2000)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 500

    async def scenario(client: httpx.AsyncClient) -> None:
        headers = {"content-type": "application/json"}
        response = await client.post(path, content=chunks(), headers=headers)
        assert response.status_code == 413
        assert "the body is too large; the limit is 2000 bytes (setting max_body_bytes)" in response.text
        body = response.json()
        assert set(body) == set(shape)
        if isinstance(shape, dict):
            assert set(body["error"]) == shape["error"]

    server.run(scenario)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "not_found"),
        ("GET", "/v1/adapters/", 404, "not_found"),
        ("GET", "/v1/adapters/adp_x", 404, "unknown_adapter"),
        ("DELETE", "/v1/adapters/..%2f..%2fx", 404, "not_found"),
        ("GET", "/v1/predict", 405, "method_not_allowed"),
        ("PUT", "/v1/adapters", 405, "method_not_allowed"),
        ("GET", "/v1/adapters?limit=0", 422, "invalid_request"),
        ("GET", "/v1/adapters?limit=x", 422, "invalid_request"),
    ],
)
def test_wrong_addresses_get_the_error_object(
    server: Server, method: str, path: str, status: int, code: str
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        response = await client.request(method, path)
        error = check_error(response, status, code)
        assert error["param"] == (
            "limit" if "limit" in path else "adapter_id" if code == "unknown_adapter" else None
        )
        if status == 405:
            assert response.headers["allow"]

    server.run(scenario)


def test_contradictory_support_is_accepted_with_a_warning(server: Server) -> None:
    support = [*SUPPORT, {"input": "good", "output": "no"}]
    answer = server.post("/v1/predict", changed(support=support)).json()
    assert answer["warnings"] == ["the input 'good' appears with different outputs"]


def test_a_label_without_an_example_gives_a_warning(server: Server) -> None:
    answer = server.post("/v1/predict", changed(options=["yes", "no", "maybe"])).json()
    assert answer["warnings"] == ["no support example is labelled 'maybe'"]


def test_truncate_lets_long_inputs_and_examples_in(tmp_path: Path) -> None:
    long = "a" * 2 * MAX_TOKENS
    support = [*SUPPORT, {"input": long, "output": "no"}]
    refused = Server(tmp_path / "1").post("/v1/predict", changed(support=support, inputs=[long]))
    assert refused.status_code == 422
    server = Server(tmp_path / "2")
    assert (
        server.post("/v1/predict", changed(support=support, inputs=[long], truncate=True)).status_code == 200
    )
    assert len(server.worker.adapted[0].examples[-1].prompt.prompt) < len(long)
    assert len(server.worker.predicted[0].prompts[0].prompt) < len(long)
