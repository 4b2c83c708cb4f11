"""Properties of the wire: any JSON is answered, and valid requests survive a round trip."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service import schemas
from service.api.native.requests import predict_request
from service.schemas import demo
from tests.service.conftest import Server

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)
options = st.none() | st.lists(texts, max_size=4)
support_rows = st.fixed_dictionaries({"input": texts, "output": texts}, optional={"options": options})
inputs = st.lists(
    texts | st.fixed_dictionaries({"input": texts}, optional={"options": options}), min_size=1, max_size=3
)
unit = st.floats(0, 1) | st.integers(0, 1)
raw = {
    "min_confidence": unit,
    "min_margin": unit,
    "max_mutual_information": unit,
    "min_typicality": unit,
    "min_answerable": unit,
    "max_semantic_entropy": unit,
    "min_logprob_per_token": st.floats(-99, 0),
}
gates = st.fixed_dictionaries({}, optional={name: st.none() | value for name, value in raw.items()})
calibrated_gates = st.fixed_dictionaries(
    {"target_error": st.floats(0.001, 0.5)}, optional={"delta": st.none() | st.floats(1e-6, 0.5)}
) | st.fixed_dictionaries({"target_coverage": st.floats(0, 1, exclude_min=True, exclude_max=True)})
adapts = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.none() | st.integers(1, 10**6),
        "learning_rate": st.none() | st.floats(0, 1, exclude_min=True),
        "batch_size": st.none() | st.integers(1, 10**6),
        "beta": st.none() | st.floats(0, 1000),
    },
)
common = {
    "model": st.none() | texts,
    "options": options,
    "samples": st.integers(0, 64) | st.just("auto"),
    "seed": st.integers(0, schemas.MAX_SEED),
    "gate": gates,
    "truncate": st.booleans(),
    "max_new_tokens": st.integers(1, 10**6),
    "confidence": st.none() | st.sampled_from(["predictive", "calibrated"]),
    "stream": st.booleans(),
}
uncalibrated = {**common, "answers_per_sample": st.integers(1, 64)}
predict_bodies = (
    st.fixed_dictionaries(
        {"support": st.lists(support_rows, max_size=3), "inputs": inputs},
        optional={**uncalibrated, "adapt": adapts},
    )
    | st.fixed_dictionaries({"adapter_id": texts, "inputs": inputs}, optional=uncalibrated)
    | st.fixed_dictionaries(
        {"adapter_id": texts, "inputs": inputs},
        optional={
            **common,
            "gate": gates | calibrated_gates,
            "set": st.fixed_dictionaries({"alpha": st.floats(0.001, 0.5)}),
            "log": st.booleans(),
        },
    )
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(body=predict_bodies)
def test_a_valid_request_parses_back_to_itself(body: dict[str, Any]) -> None:
    parsed = schemas.PredictRequest.model_validate_json(json.dumps(body))
    again = schemas.PredictRequest.model_validate_json(parsed.model_dump_json())
    assert again == parsed
    assert predict_request(again) == predict_request(parsed)
    for name, value in body.items():
        if name not in {"gate", "set", "adapt", "inputs", "support"}:
            assert getattr(parsed, name) == value


@given(
    body=predict_bodies, name=st.sampled_from(sorted(schemas.PredictRequest.model_fields)), value=json_values
)
def test_what_a_field_accepts_it_keeps(body: dict[str, Any], name: str, value: Any) -> None:
    """There is no coercion: a value of another type is refused, not converted."""
    try:
        parsed = schemas.PredictRequest.model_validate(body | {name: value})
    except ValidationError:
        return
    kept = parsed.model_dump(exclude_unset=True)[name]
    assert kept == value
    assert isinstance(kept, bool) == isinstance(value, bool)


@pytest.fixture(scope="module")
def post(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Yield a function that sends POST requests to one server for the whole module."""
    server = Server(tmp_path_factory.mktemp("server"), max_steps=2)
    with asyncio.Runner() as runner:
        running = server.running()
        client: httpx.AsyncClient = runner.run(running.__aenter__())

        def send(path: str, content: bytes) -> httpx.Response:
            headers = {"content-type": "application/json"}
            return runner.run(client.post(path, content=content, headers=headers))

        yield send
        runner.run(running.__aexit__(None, None, None))


bounded = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@bounded
@given(body=predict_bodies | json_values)
@example(body=demo.predict_body())
@example(body=demo.predict_body() | {"stream": True})
def test_any_json_gets_an_answer_or_an_error_object(post: Any, body: Any) -> None:
    response = post("/v1/predict", json.dumps(body).encode())
    if response.headers["content-type"].startswith(
        "text/event-stream"
    ):  # the body asks for a stream, which test_streaming.py reads
        assert response.status_code == 200
        assert body["stream"] is True
        assert response.text.rstrip().rpartition("\n\n")[2].startswith("event: done\n")
    elif response.status_code == 200:
        answer = schemas.PredictResponse.model_validate_json(response.content)
        assert len(answer.predictions) == len(body["inputs"])
    else:
        assert response.status_code in {400, 404, 422}
        schemas.ErrorResponse.model_validate_json(response.content)


@bounded
@given(content=st.binary(max_size=50))
def test_any_bytes_get_an_error_object(post: Any, content: bytes) -> None:
    response = post("/v1/adapters", content)
    assert response.status_code in {400, 422}
    schemas.ErrorResponse.model_validate_json(response.content)
