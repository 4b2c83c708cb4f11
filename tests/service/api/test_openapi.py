"""The OpenAPI document: its examples are valid, and the server answers as it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import given
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service import schemas
from service.api.classify.wire import ClassifyRequest
from service.api.decisions.wire import DecisionRequest
from service.api.systemone.wire import SystemOneRequest
from tests.property_runs import tries
from tests.service.conftest import Server

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)
OPERATIONS = [
    "POST /v1/adapters",
    "GET /v1/adapters",
    "GET /v1/adapters/{adapter_id}",
    "DELETE /v1/adapters/{adapter_id}",
    "GET /v1/adapters/{adapter_id}/progress",
    "GET /v1/adapters/{adapter_id}/events",
    "POST /v1/adapters/{adapter_id}/cancel",
    "POST /v1/adapters/{adapter_id}/diagnose",
    "POST /v1/adapters/{adapter_id}/readapt",
    "POST /v1/adapters/{adapter_id}/pin",
    "POST /v1/adapters/{adapter_id}/unpin",
    "POST /v1/adapters/{adapter_id}/calibrate",
    "GET /v1/adapters/{adapter_id}/calibration",
    "DELETE /v1/adapters/{adapter_id}/calibration",
    "POST /v1/adapters/{adapter_id}/feedback",
    "PUT /v1/names/{name}",
    "GET /v1/names",
    "GET /v1/names/{name}",
    "DELETE /v1/names/{name}",
    "POST /v1/names/{name}/rollback",
    "POST /v1/predict",
    "POST /v1/decide",
    "POST /v1/classify",
    "POST /v1/decisions",
    "POST /v1/systemone",
    "GET /v2",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "GET /v2/models/{name}",
    "GET /v2/models/{name}/ready",
    "POST /v2/models/{name}/infer",
    "GET /v2/models/{name}/versions/{version}",
    "GET /v2/models/{name}/versions/{version}/ready",
    "POST /v2/models/{name}/versions/{version}/infer",
    "GET /v1/workers",
    "GET /v1/models",
    "GET /v1/models/{model_id}",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/files",
    "GET /v1/files",
    "GET /v1/files/{file_id}",
    "GET /v1/files/{file_id}/content",
    "DELETE /v1/files/{file_id}",
    "POST /v1/batches",
    "GET /v1/batches",
    "GET /v1/batches/{batch_id}",
    "POST /v1/batches/{batch_id}/cancel",
    "GET /v1/limits",
    "GET /v1/version",
    "GET /livez",
    "GET /readyz",
    "GET /metrics",
]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BaseSchema]:
    """Return the document as a client reads it from a listening server."""
    server = Server(tmp_path_factory.mktemp("openapi"), max_steps=2)
    with server.listening() as running:
        yield schemathesis.openapi.from_url(f"{running.url}/openapi.json")


def operations(document: BaseSchema) -> dict[str, Any]:
    found = [result.ok() for result in document.get_all_operations()]
    return {operation.label: operation for operation in found}


def test_every_route_is_documented(document: BaseSchema) -> None:
    assert sorted(operations(document)) == sorted(OPERATIONS)


@pytest.mark.parametrize("label", OPERATIONS)
def test_the_server_does_what_its_document_says(document: BaseSchema, label: str) -> None:
    operation = operations(document)[label]
    answered = set()

    @given(case=operation.as_strategy())
    @tries(40)
    def check(case: schemathesis.Case) -> None:
        answered.add(case.call_and_validate(checks=CHECKS, timeout=60).status_code)

    check()
    assert answered


def test_worked_examples_are_answered_as_documented(document: BaseSchema) -> None:
    for label, model in (
        ("POST /v1/adapters", schemas.CreateAdapterRequest),
        ("POST /v1/predict", schemas.PredictRequest),
        ("POST /v1/decide", schemas.DecideRequest),
        ("POST /v1/classify", ClassifyRequest),
        ("POST /v1/decisions", DecisionRequest),
        ("POST /v1/systemone", SystemOneRequest),
    ):
        (example,) = document.raw_schema["components"]["schemas"][model.__name__]["examples"]
        body = {**example, "model": "fake-1b"} if "model" in example else example
        case = operations(document)[label].Case(body=body, media_type="application/json")
        assert case.call_and_validate(checks=CHECKS).status_code in {200, 201}


@pytest.mark.parametrize("binary", [False, True])
def test_an_inference_is_answered_as_documented(document: BaseSchema, binary: bool) -> None:
    (body,) = document.raw_schema["components"]["schemas"]["CreateAdapterRequest"]["examples"]
    created = operations(document)["POST /v1/adapters"].Case(body=body, media_type="application/json").call()
    (body,) = document.raw_schema["components"]["schemas"]["InferRequest"]["examples"]
    case = operations(document)["POST /v2/models/{name}/infer"].Case(
        path_parameters={"name": created.json()["id"]},
        body={**body, "parameters": {"binary_data_output": binary}},
        media_type="application/json",
    )
    response = case.call_and_validate(checks=CHECKS)
    assert response.status_code == 200
    assert ("inference-header-content-length" in response.headers) is binary


@pytest.mark.parametrize(
    "operation", ["POST /v1/predict", "POST /v1/chat/completions", "POST /v1/completions"]
)
def test_a_stream_has_the_events_that_are_documented(document: BaseSchema, operation: str) -> None:
    """Found by a long run: the document called each event a text."""
    support = [{"input": "a", "output": "x"}, {"input": "b", "output": "y"}]
    extras = {"support": support, "options": ["x", "y"]}
    bodies: dict[str, dict[str, Any]] = {
        "POST /v1/predict": {**extras, "inputs": ["c"]},
        "POST /v1/chat/completions": {"model": "fake-1b", "messages": [{"role": "user", "content": "c"}], "abmll": extras},
        "POST /v1/completions": {"model": "fake-1b", "prompt": "c", "abmll": extras},
    }  # fmt: skip
    case = operations(document)[operation].Case(
        body={**bodies[operation], "stream": True}, media_type="application/json"
    )
    response = case.call(timeout=60)
    assert response.status_code == 200, response.text
    case.validate_response(response, checks=[response_schema_conformance, content_type_conformance])
