"""Any JSON to any surface: an answer of its form, or an error that it documents; never 5xx, never a
lost worker.

tests/property_runs.py has the command of the long run.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from service import schemas
from service.api import openai_errors
from service.api.classify import wire as classify
from service.api.decisions import wire as decisions
from service.api.oip import wire as oip
from service.api.openai import wire as openai
from service.api.systemone import errors as systemone_errors
from service.api.systemone import wire as systemone
from tests.property_runs import tries
from tests.service.conftest import Server

# ---- surfaces ------------------------------------------------------------------------------------

BASE = "fake-1b"
SUPPORT = [
    {"input": "good", "output": "yes"},
    {"input": "bad", "output": "no"},
    {"input": "fine", "output": "yes"},
]
OPTIONS = ["yes", "no"]
GATE = {"min_confidence": 0.5, "min_margin": 0.1, "max_mutual_information": 1.0}
ADAPT = {"steps": 2, "learning_rate": 0.01, "batch_size": 2, "beta": 1e-3, "calibration_folds": 2}
EXTRAS = {"support": SUPPORT, "options": OPTIONS, "adapt": ADAPT, "samples": "auto", "seed": 1, "gate": GATE,
          "on_abstain": "null", "truncate": True}  # fmt: skip
CHAT = {"model": BASE, "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}], "name": "n"}],
        "abmll": EXTRAS, "logprobs": True, "top_logprobs": 2, "n": 1, "stream": False, "temperature": 0.5,
        "stream_options": {"include_usage": True}, "stop": None, "tools": [], "tool_choice": "none",
        "response_format": {"type": "text"}, "max_completion_tokens": 4, "metadata": {"a": "b"}}  # fmt: skip
TEXTS = [
    {
        "name": "text",
        "shape": [2, 1],
        "datatype": "BYTES",
        "data": ["x", ["y"]],
        "parameters": {"content_type": "str"},
    }
]
DECISIONS = {
    "samples": 4, "seed": 1, "gate": GATE, "adapt": {"effort": "instant"}, "truncate": True,
}  # fmt: skip
PARTS = [{"type": "input_text", "text": "x"}, {"type": "input_json", "data": {"a": [1, None]}}]
TYPED = [
    {"type": "predicate", "name": "a", "instructions": PARTS},
    {"type": "choice", "name": "b", "instructions": "?",
     "choices": [{"value": "x", "description": "d"}, {"value": True}]},
    {"type": "score", "name": "c", "instructions": "?", "levels": [{"label": "low"}, {"label": "high"}]},
]  # fmt: skip
CASES = [
    {"input": "x", "answers": {"a": True, "b": True, "c": 1}},
    {"input": "y", "answers": {"a": False, "b": "x", "c": None}},
    {"input": "z", "answers": {"a": True, "b": "x", "c": 0}},
    {"input": "w", "answers": {"a": False, "b": True, "c": 1}},
]
MESSAGES = [
    {"role": "user", "content": PARTS},
    {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "1", "output": "x"},
]
NAMED = {
    "a": {"type": "noul", "instructions": {"a": [1]}, "criteria": {"true": "x", "false": None}},
    "b": {"type": "choice", "criteria": {"x": "d", "y": None}},
    "c": {"type": "score", "instructions": "?", "criteria": ["low", ["high"]]},
}
OUTPUTS = [{"name": "answer", "parameters": {"binary_data": False}}, {"name": "probabilities"}]


@dataclass(frozen=True)
class Surface:
    """Where bodies go, what a good one is, and the models of its answers and errors."""

    path: str
    body: Mapping[str, Any]
    answer: type[schemas.WireModel]
    error: type[schemas.WireModel] = schemas.ErrorResponse
    refusals: tuple[int, ...] = (400, 404, 422)


SURFACES = {
    "predict": Surface(
        "/v1/predict",
        {"model": BASE, "support": SUPPORT, "options": OPTIONS, "inputs": ["x", {"input": "y", "options": ["a", "b"]}],
         "samples": 4, "seed": 1, "adapt": ADAPT, "gate": GATE, "truncate": True, "max_new_tokens": 4, "stream": False,
         "answers_per_sample": 1, "confidence": "predictive"},
        schemas.PredictResponse,
    ),
    "predict by id": Surface(
        "/v1/predict",
        {"adapter_id": "ADAPTER", "inputs": ["x"], "gate": {"target_coverage": 0.5}, "set": {"alpha": 0.2},
         "log": True, "samples": 4},
        schemas.PredictResponse,
    ),
    "adapters": Surface(
        "/v1/adapters",
        {"model": BASE, "support": SUPPORT, "options": OPTIONS, "adapt": ADAPT, "seed": 0, "truncate": False},
        schemas.CreateAdapterResponse,
    ),
    "adapters of questions": Surface(
        "/v1/adapters",
        {"model": BASE, "questions": [{**TYPED[0], "criteria": {"yes": "x"}}, *TYPED[1:]], "cases": CASES,
         "adapt": ADAPT},
        schemas.CreateAdapterResponse,
    ),
    "decide": Surface(
        "/v1/decide",
        {**DECISIONS, "model": BASE, "questions": TYPED, "cases": CASES, "inputs": ["x", "y"], "gates": {"a": GATE},
         "confidence": "predictive"},
        schemas.DecideResponse,
    ),
    "decide by id": Surface(
        "/v1/decide", {"model": "ASKED", "questions": ["a", TYPED[1]], "inputs": ["x"]}, schemas.DecideResponse,
    ),
    "diagnose": Surface("/v1/adapters/ADAPTER/diagnose", {"folds": 2, "samples": 4}, schemas.DiagnoseResponse),
    "calibrate": Surface(
        "/v1/adapters/ADAPTER/calibrate",
        {"examples": [{"input": "new", "output": "yes", "options": OPTIONS}], "options": OPTIONS, "samples": 4, "seed": 0,
         "truncate": False, "max_new_tokens": 32, "replace": False, "more_follow": False},
        schemas.Calibration,
    ),
    "feedback": Surface(
        "/v1/adapters/ADAPTER/feedback",
        {"feedback": [{"prediction_id": "PREDICTION", "label": "yes"}]},
        schemas.FeedbackResponse,
    ),
    "classify": Surface(
        "/v1/classify",
        {"examples": [{"text": row["input"], "label": row["output"]} for row in SUPPORT], "inputs": ["x"], "model": BASE,
         "truncate": "END", "abmll": {"samples": 4, "seed": 1, "gate": GATE, "adapt": ADAPT}},
        classify.ClassifyResponse, classify.ClassifyError, (400, 404),
    ),
    "decisions": Surface(
        "/v1/decisions",
        {"model": BASE, "input": MESSAGES, "questions": TYPED, "prompt_cache_key": None,
         "abmll": {**DECISIONS, "cases": CASES}},
        decisions.Decision, openai_errors.ErrorResponse, (400, 404),
    ),
    "decisions by id": Surface(
        "/v1/decisions",
        {"model": "ADAPTER", "input": "x", "questions": TYPED, "abmll": {"samples": 4, "refuse": True}},
        decisions.Decision, openai_errors.ErrorResponse, (400, 404),
    ),
    "systemone": Surface(
        "/v1/systemone",
        {"model": BASE, "state": {"a": [1, {"b": None}]}, "questions": NAMED,
         "abmll": {**DECISIONS, "cases": [{"state": ["x"], "answers": {"a": True, "b": "y", "c": 1}},
                                          {"state": "y", "answers": {"a": False, "b": "x", "c": None}}]}},
        systemone.SystemOneResponse, systemone_errors.ErrorResponse, (400, 404, 422),
    ),
    "chats": Surface("/v1/chat/completions", CHAT, openai.ChatCompletion, openai_errors.ErrorResponse, (400, 404)),
    "completions": Surface(
        "/v1/completions",
        {"model": "ADAPTER", "prompt": ["x", "y"], "logprobs": 2, "best_of": 1, "echo": False, "suffix": None,
         "max_tokens": 4, "stream": False, "abmll": {"samples": 4, "gate": GATE}},
        openai.Completion, openai_errors.ErrorResponse, (400, 404),
    ),
    "infer": Surface(
        "/v2/models/ADAPTER/infer",
        {"id": "1", "inputs": TEXTS, "outputs": OUTPUTS,
         "parameters": {"samples": 4, "min_margin": 0.1, "options": '["a", "b"]'}},
        oip.InferResponse, oip.InferError, (400, 404),
    ),
    "infer with the base": Surface(
        f"/v2/models/{BASE}/infer",
        {"inputs": TEXTS, "parameters": {"support": json.dumps(SUPPORT), "options": '["yes", "no"]', "steps": 2,
                                         "binary_data_output": False, "seed": 3}},
        oip.InferResponse, oip.InferError, (400, 404),
    ),
}  # fmt: skip

# ---- bodies --------------------------------------------------------------------------------------

texts = st.text(max_size=8) | st.sampled_from(
    ["", " ", "\0", "\ud83d", "a\u2028b", "yes", "yes ", "auto", "AUTO", "x" * 300]
)
numbers = (
    st.integers()
    | st.floats()
    | st.sampled_from([0, -1, 2**31, 2**53, 2**64, 10**400, 1e308, 5e-324, True, False])
)
values = st.recursive(
    st.none() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
names = sorted(
    {name for model in (schemas.PredictRequest, openai.ChatCompletionRequest, openai.CompletionRequest,
                        openai.Extras, classify.ClassifyRequest, oip.InferParameters,
                        decisions.DecisionRequest, systemone.SystemOneRequest, schemas.DecideRequest,
                        schemas.CreateAdapterRequest)
     for name in model.model_fields}
)  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each place of `value`, as an object or a list and a key or an index of it."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


@st.composite
def near(draw: st.DrawFn, body: Mapping[str, Any]) -> Any:
    """A good body with a few places changed, taken out, doubled or exchanged."""
    changed: Any = copy.deepcopy(dict(body))
    for _ in range(draw(st.integers(1, 2))):
        found = list(places(changed))
        if not found:
            break
        holder, key = draw(st.sampled_from(found))
        match draw(st.sampled_from(["change", "take out", "add", "exchange", "repeat"])):
            case "change":
                holder[key] = draw(values)
            case "take out":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(texts | st.sampled_from(names))] = draw(values)
            case "exchange":
                other, place = draw(st.sampled_from(found))
                holder[key] = copy.deepcopy(other[place])
            case _ if isinstance(holder, list):
                holder.extend([holder[key]] * draw(st.sampled_from([1, 2, 300])))
    return changed


def written(body: Any) -> bytes:
    """JSON as clients write it, with what only some of them write: NaN, halves of surrogate pairs."""
    return json.dumps(body).encode()


@st.composite
def torn(draw: st.DrawFn, body: Mapping[str, Any]) -> bytes:
    """A good body's text with a piece of bytes in place of another."""
    text = written(body)
    begin = draw(st.integers(0, len(text)))
    end = draw(st.integers(begin, len(text)))
    return text[:begin] + draw(st.binary(max_size=6)) + text[end:]


# ---- the server ----------------------------------------------------------------------------------

Post = Callable[[str, bytes], httpx.Response]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    return Server(tmp_path_factory.mktemp("any"), max_steps=4)


@pytest.fixture(scope="module")
def post(server: Server) -> Iterator[Post]:
    """POSTs to one server that runs for the whole module.

    ADAPTER in paths and bodies is one that is calibrated, PREDICTION is one of its that was logged.
    ASKED is an adapter with questions of its own.
    """
    with asyncio.Runner() as runner:
        running = server.running()
        client = runner.run(running.__aenter__())
        made = runner.run(client.post("/v1/adapters", json={"support": SUPPORT, "options": OPTIONS}))
        adapter = made.json()["id"]
        asked = runner.run(client.post("/v1/adapters", json={"questions": TYPED, "cases": CASES})).json()[
            "id"
        ]
        outcomes = [{"input": f"text {i}", "output": OPTIONS[i % 2]} for i in range(60)]
        calibrated = runner.run(
            client.post(f"/v1/adapters/{adapter}/calibrate", json={"examples": outcomes, "samples": 4})
        )
        assert calibrated.status_code == 200
        body = {"adapter_id": adapter, "inputs": ["x"], "samples": 4, "log": True}
        (logged,) = runner.run(client.post("/v1/predict", json=body)).json()["predictions"]

        def send(path: str, content: bytes) -> httpx.Response:
            headers = {"content-type": "application/json"}
            path, content = path.replace("ADAPTER", adapter), content.replace(b"ADAPTER", adapter.encode())
            content = content.replace(b"PREDICTION", logged["prediction_id"].encode())
            content = content.replace(b"ASKED", asked.encode())
            return runner.run(client.post(path, content=content, headers=headers))

        yield send
        runner.run(running.__aexit__(None, None, None))


class Failures(logging.Handler):
    """What was logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


@pytest.fixture(scope="module")
def failures() -> Iterator[Failures]:
    handler = Failures()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


def check(surface: Surface, response: httpx.Response) -> None:
    """An answer of the surface's form, whole or in events, or an error that it documents."""
    kind = response.headers["content-type"].partition(";")[0]
    if response.status_code >= 300:
        assert response.status_code in surface.refusals, response.text
        TypeAdapter(surface.error).validate_json(response.content)
    elif kind == "text/event-stream":
        last = response.text.rstrip().rpartition("\n\n")[2]
        assert last == "data: [DONE]" or last.startswith("event: done\n")
        for line in response.text.splitlines():
            if line.startswith("data: ") and line != "data: [DONE]":
                json.loads(line.removeprefix("data: "))
    elif kind == "application/octet-stream":
        length = int(response.headers["inference-header-content-length"])
        surface.answer.model_validate_json(response.content[:length])
    else:
        surface.answer.model_validate_json(response.content)


@pytest.mark.parametrize("name", SURFACES)
def test_what_the_changes_begin_with_is_answered(name: str, post: Post) -> None:
    surface = SURFACES[name]
    response = post(surface.path, written(surface.body))
    check(surface, response)
    assert response.status_code < 300, response.text


@pytest.mark.parametrize("name", SURFACES)
def test_any_json_gets_an_answer_or_a_documented_error(
    name: str, post: Post, server: Server, failures: Failures
) -> None:
    surface = SURFACES[name]

    @tries(50)
    @given(content=near(surface.body).map(written) | torn(surface.body) | values.map(written))
    def any_body(content: bytes) -> None:
        check(surface, post(surface.path, content))
        assert failures.records == []

    any_body()
    assert [(worker.state, worker.restarts) for worker in server.engine.workers()] == [("up", 0)]
