"""Streamed predictions: their events, which add up to the unstreamed answer, and their end."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch

from abmll.adaptation.settings import AdaptSettings
from abmll.memory_plan import measure_costs
from abmll.model import FewShotModel
from abmll.posterior.posteriors import GlobalPosterior
from abmll.prediction.settings import PredictSettings
from abmll.text.prompting import EncodedPrompt
from service import schemas
from service.api.native import streaming
from service.engine.progress import Progress, ProgressFeed
from service.executors.contract import PredictJob, ServedModel
from service.executors.worker import ModelWorker
from service.gating.confidence import Confidence
from service.gating.decisions import DecidedPrediction
from tests.service.api.stepping import (
    BODY,
    CREATE,
    EVENTS,
    SteppedWorker,
    lasting,
    read,
    stream,
    streaming_from,
    unstreamed,
    whole,
)
from tests.service.conftest import Listening, Server
from tests.service.fakes import served_model
from tests.tiny import make_config, tiny_model, tiny_tokenizer


@pytest.fixture
def worker() -> SteppedWorker:
    return SteppedWorker()


@pytest.fixture
def server(tmp_path: Path, worker: SteppedWorker) -> Server:
    return Server(tmp_path, worker)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    """Yield a listening server with a tiny random model."""
    torch.set_num_threads(1)
    config = make_config(rank=4, alpha=8.0, first_layer=1, offset=0.05)
    model = FewShotModel(tiny_model(), tiny_tokenizer(), config)
    noise = 0.05 * torch.randn(model.prior.values.shape, generator=torch.Generator().manual_seed(1))
    model.prior = GlobalPosterior(config, model.prior.sites, model.prior.values + noise)
    base = served_model().base
    served = ServedModel(base, "tiny", "d" * 64, {}, AdaptSettings(steps=3), model.encoder)
    plan = measure_costs(model.backbone, model.prior).plan(10**9)
    loaded = SimpleNamespace(load=lambda: ModelWorker(model, served, plan, 256))
    with Server(tmp_path_factory.mktemp("tiny"), loaded).listening() as running:  # type: ignore[arg-type]
        yield running


def test_events_come_in_order_and_each_tells_the_truth(server: Server) -> None:
    body = {**BODY, "samples": 20, "gate": {"min_confidence": 0.55}, "adapt": {"steps": 3}}
    with server.listening() as running:
        events = stream(running, body)
        answers = {samples: unstreamed(running, {**body, "samples": samples}) for samples in (8, 16, 20)}
        adapter = httpx.get(f"{running.url}/v1/adapters/{events[-1].data['adapter_id']}").json()
    # On a busy machine, a slow reader misses refinements that were replaced, and nothing else.
    assert [event.name for event in events if event.name != "refinement"] == [
        *["step"] * 3, "adapter", *["prediction"] * 3, "done",
    ]  # fmt: skip
    steps = [event.data for event in events if event.name == "step"]
    losses = adapter["diagnostics"]["losses"]
    assert steps == [{"step": n + 1, "steps": 3, "loss": loss} for n, loss in enumerate(losses)]
    assert events[3].data == {"adapter_id": adapter["id"], "cache": "miss", "warnings": []}
    # Each refinement is the answer to the same request with that number of samples.
    for event in events:
        if event.name in ("refinement", "prediction"):
            assert event.data == answers[event.data["samples"]]["predictions"][event.data["index"]]
    counts = [event.data["samples"] for event in events if "samples" in event.data]
    assert counts == sorted(counts)
    assert {count: counts.count(count) for count in set(counts)}.items() <= {8: 3, 16: 3, 20: 3}.items()


@pytest.mark.parametrize("samples", [0, 1, 8, 20, "auto"])
def test_the_end_is_the_answer_of_the_same_request_unstreamed(server: Server, samples: Any) -> None:
    with server.listening() as running:
        answer = unstreamed(running, {**BODY, "samples": samples})
        streamed = whole(stream(running, {**BODY, "samples": samples}))
        assert lasting(streamed) == lasting(answer)
        assert set(streamed) == set(answer)
        assert streamed["cache"] == "hit"
        assert streamed["timings"]["total_seconds"] > 0
        schemas.PredictResponse.model_validate_json(json.dumps(streamed))


def test_an_input_is_sent_as_settled_while_others_go_on(server: Server, worker: SteppedWorker) -> None:
    units = [
        [("prediction", 0, 8), ("refinement", 1, 8), ("refinement", 2, 8)],
        [("prediction", 1, 16), ("refinement", 2, 16)],
        [("prediction", 2, 24)],
    ]
    with server.listening() as running:
        httpx.post(f"{running.url}/v1/adapters", json=CREATE)
        worker.turns = threading.Semaphore(0)
        body = {**BODY, "samples": "auto", "gate": {"min_confidence": 0.5}}
        with streaming_from(running, body) as events:
            assert next(events).name == "adapter"
            for expected in units:  # read before the next unit begins, so that none is missed
                worker.turns.release()
                found = [next(events) for _ in expected]
                assert [(e.name, e.data["index"], e.data["samples"]) for e in found] == expected
            assert [event.name for event in events] == ["done"]


@pytest.mark.parametrize(
    "change",
    [
        {"samples": 24},
        {"samples": 0},
        {"samples": "auto", "gate": {"min_confidence": 0.99}},
        {"options": None, "samples": 24},
    ],
)
def test_on_a_real_model_too_the_end_is_the_unstreamed_answer(
    tiny: Listening, change: dict[str, Any]
) -> None:
    rows = [{"input": f"the film was {word}", "output": word} for word in ("great", "dull")]
    inputs = ["a wonderful film", "a story, badly told, and I want my money back"]
    body = {"support": rows, "options": ["great", "dull"], "inputs": inputs, "max_new_tokens": 4, **change}
    events = stream(tiny, body)
    assert lasting(whole(events)) == lasting(unstreamed(tiny, body))
    steps = [event.data["step"] for event in events if event.name == "step"]
    assert steps == ([1, 2, 3] if events[-1].data["cache"] == "miss" else [])
    refinements = [event.data["samples"] for event in events if event.name == "refinement"]
    if change["samples"] == "auto":
        settled = [event.data["samples"] for event in events if event.name == "prediction"]
        assert max(settled) < 64
    if change["samples"] == 0:
        assert refinements == []


def test_both_answers_are_documented(server: Server) -> None:
    answers = server.app.openapi()["paths"]["/v1/predict"]["post"]["responses"]
    assert set(answers["200"]["content"]) == {"application/json", "text/event-stream"}
    schema = answers["200"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/PredictResponse"}
    assert set(answers["422"]["content"]) == {"application/json"}
    page = (Path(__file__).parents[3] / "docs/streaming.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == EVENTS


def test_the_headers_are_those_of_an_event_stream(server: Server) -> None:
    with server.listening() as running:
        response = httpx.post(
            f"{running.url}/v1/predict", json={**BODY, "stream": True}, headers={"x-request-id": "mine"}
        )
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-request-id"] == "mine"
    assert list(read(response.iter_lines()))[-1].data["request_id"] == "mine"


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"inputs": []}, 422, "invalid_request"),
        ({"stream": 1}, 422, "invalid_request"),
        ({"inputs": ["x" * 300]}, 422, "prompt_too_long"),
        ({"options": ["maybe", "no"]}, 422, "invalid_options"),
        ({"support": None, "options": None, "adapter_id": "adp_00000000"}, 404, "unknown_adapter"),
        ({"model": "another"}, 404, "unknown_model"),
    ],
)
def test_what_is_refused_is_an_ordinary_error(
    server: Server, change: dict[str, Any], status: int, code: str
) -> None:
    refused = server.post("/v1/predict", {**BODY, "stream": True, **change})
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    assert refused.headers["content-type"] == "application/json"
    assert server.engine.in_flight == 0
    assert server.worker.unfinished == 0


def test_a_stream_has_one_place_for_all_its_length(tmp_path: Path, worker: SteppedWorker) -> None:
    server = Server(tmp_path, worker, queue_limit=1)
    with server.listening() as running:
        worker.turns = threading.Semaphore(0)
        with streaming_from(running, BODY) as events:
            for stream_too in (False, True):
                refused = httpx.post(f"{running.url}/v1/predict", json={**BODY, "stream": stream_too})
                assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
            assert server.engine.in_flight == 1
            worker.turns.release(100)
            assert list(events)[-1].name == "done"
        running.wait_for(lambda: server.engine.in_flight == 0)
        assert unstreamed(running, BODY)["cache"] == "hit"


def test_a_failure_midway_is_sent_as_an_event(
    server: Server, worker: SteppedWorker, caplog: pytest.LogCaptureFixture
) -> None:
    with server.listening() as running:
        httpx.post(f"{running.url}/v1/adapters", json=CREATE)
        worker.turns = threading.Semaphore(1)
        with streaming_from(running, {**BODY, "samples": 24}) as events:
            assert next(events).name == "adapter"
            assert next(events).name == "refinement"
            worker.fail = RuntimeError("secret path")
            worker.turns.release()
            *_, last = events
        assert last.name == "error"
        assert (last.data["error"]["code"], set(last.data)) == ("internal_error", {"error"})
        assert "secret" not in json.dumps(last.data)
        assert any(last.data["error"]["request_id"] in record.getMessage() for record in caplog.records)
        running.wait_for(lambda: server.engine.in_flight == 0)
        metrics = httpx.get(f"{running.url}/metrics").text
        page = metrics
        assert not re.search(r"^abmll_decisions_total\{.*\} (?!0\.0$)", page, re.MULTILINE)


def test_the_deadline_holds_and_its_error_names_the_adapter(tmp_path: Path, worker: SteppedWorker) -> None:
    server = Server(tmp_path, worker, deadline_seconds=4)
    with server.listening() as running:
        worker.turns = threading.Semaphore(2)
        events = stream(running, {**BODY, "adapt": {"steps": 5}})
        worker.turns.release(100)
    assert [event.name for event in events] == ["step", "step", "error"]
    error = events[-1].data["error"]
    assert error["code"] == "deadline_exceeded"
    assert error["adapter_id"].startswith("adp_")


def test_a_client_that_leaves_ends_the_work_and_frees_the_place(
    server: Server, worker: SteppedWorker
) -> None:
    with server.listening() as running:
        httpx.post(f"{running.url}/v1/adapters", json=CREATE)
        for body, first in (({**BODY, "samples": 64}, "adapter"), ({**BODY, "seed": 1}, "step")):
            worker.turns = threading.Semaphore(1)
            with streaming_from(running, body) as events:
                assert next(events).name == first
                assert server.engine.in_flight == 1
            running.wait_for(lambda: server.engine.in_flight == 0)
            # The job is cancelled after the request has left, and has to be before it gets a turn.
            running.wait_for(lambda: server.engine.workers()[0].jobs == 0)
            worker.turns.release()  # for the unit that is running
            running.wait_for(lambda: worker.unfinished == 0)
        worker.turns = threading.Semaphore(100)
        assert stream(running, BODY)[-1].name == "done"


def test_while_nothing_happens_the_connection_is_kept_alive(
    server: Server, worker: SteppedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.05)
    with server.listening() as running:
        worker.turns = threading.Semaphore(0)
        with httpx.stream("POST", f"{running.url}/v1/predict", json={**BODY, "stream": True}) as response:
            lines = response.iter_lines()
            assert [next(lines) for _ in range(4)] == [": keep-alive", "", ": keep-alive", ""]
            worker.turns.release(100)
            assert list(read(lines))[-1].name == "done"


def test_draining_lets_a_stream_finish(server: Server, worker: SteppedWorker) -> None:
    with server.listening() as running:
        worker.turns = threading.Semaphore(1)
        with streaming_from(running, BODY) as events:
            next(events)
            running.uvicorn.should_exit = True
            running.wait_for(lambda: httpx.get(f"{running.url}/readyz").status_code == 503)
            worker.turns.release(100)
            assert list(events)[-1].name == "done"


def test_a_drain_that_takes_too_long_ends_streams_with_an_error(
    server: Server, worker: SteppedWorker
) -> None:
    with server.listening(drain_seconds=0.1) as running:
        worker.turns = threading.Semaphore(1)
        with streaming_from(running, BODY) as events:
            next(events)
            running.uvicorn.should_exit = True
            (last,) = events
    worker.turns.release(100)
    assert (last.name, last.data["error"]["code"]) == ("error", "draining")


def test_a_stream_is_one_request_to_the_log_and_the_metrics(
    server: Server, worker: SteppedWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "service.access")
    with server.listening() as running:
        worker.turns = threading.Semaphore(1)
        with streaming_from(running, {**BODY, "gate": {"min_confidence": 1.0}}) as events:
            next(events)
            threading.Event().wait(0.3)
            worker.turns.release(100)
            assert list(events)[-1].name == "done"
        running.wait_for(lambda: any("/v1/predict" in r.getMessage() for r in caplog.records))
        lines = httpx.get(f"{running.url}/metrics").text.splitlines()
    for line in (
        'abmll_requests_total{route="/v1/predict",status="200"} 1.0',
        'abmll_decisions_total{decision="abstain",reason="confidence_below_minimum"} 3.0',
        "abmll_confidence_count 3.0",
        "abmll_samples_total 48.0",
        "abmll_requests_in_flight 0.0",
    ):
        assert line in lines
    (message,) = [r.getMessage() for r in caplog.records if "/v1/predict" in r.getMessage()]
    assert "POST /v1/predict 200 " in message
    assert 0.3 <= float(message.rpartition(" ")[2].removesuffix("s")) < 20


def test_what_is_done_anew_is_not_sent_until_it_is_further_than_before(server: Server) -> None:
    """If a worker is lost, predictions begin anew; settled inputs are not sent again meanwhile."""
    prompt = EncodedPrompt((1,), text="x", options=("yes", "no"))
    adapter: Any = SimpleNamespace(values=torch.ones(3))

    def known(samples: int, *, settled: bool) -> DecidedPrediction:
        job = PredictJob("adp_0", (prompt,), PredictSettings(samples))
        prediction = replace(server.worker._predict(job, adapter, prompt), settled=settled)
        return DecidedPrediction(prediction, Confidence(prediction.predictive.confidence))

    writer, sent = streaming._EventWriter(), []
    for losses, first, second in (
        ((0.5, 0.4), None, None),
        ((0.5,), known(8, settled=True), known(8, settled=False)),
        ((0.5, 0.4, 0.3), None, None),
        ((0.5, 0.4, 0.3), known(4, settled=False), known(4, settled=False)),
        ((0.5, 0.4, 0.3), known(8, settled=True), known(16, settled=True)),
    ):
        text = writer.new_events(Progress(True, losses, 3, None, (first, second))).decode()
        sent.append(
            [
                (e.name, *list(e.data.values())[:1], e.data.get("samples"))
                for e in read(iter(text.split("\n")))
            ]
        )
    assert sent == [
        [("step", 1, None), ("step", 2, None)],
        [("prediction", 0, 8), ("refinement", 1, 8)],
        [("step", 3, None)],
        [("refinement", 1, 4)],
        [("prediction", 1, 16)],
    ]


def test_a_feed_keeps_the_latest_only() -> None:
    async def scenario() -> None:
        feed = ProgressFeed()
        assert not await feed.changed(0.01)
        for losses in ((1.0,), (1.0, 0.5)):
            feed.set_losses(losses, 2)
        assert await feed.changed(0.01)
        assert feed.latest == Progress(losses=(1.0, 0.5), steps=2)
        assert not await feed.changed(0.01)

    asyncio.run(scenario())


def test_a_calibrated_gate_decides_in_a_stream_as_it_does_without(server: Server) -> None:
    with server.listening() as running:
        refused = httpx.post(
            f"{running.url}/v1/predict", json={**BODY, "stream": True, "gate": {"target_error": 0.2}}
        )
        assert refused.status_code == 422  # support instead of an adapter
        adapter_id = unstreamed(running, BODY)["adapter_id"]
        asking = {"adapter_id": adapter_id, "options": BODY["options"], "samples": 16}
        body = {**asking, "inputs": ["a", "b"], "gate": {"target_coverage": 0.5}, "set": {"alpha": 0.2}}
        missing = httpx.post(f"{running.url}/v1/predict", json={**body, "stream": True})
        assert (missing.status_code, missing.json()["error"]["code"]) == (422, "calibration_missing")
        texts = [f"text {n}" for n in range(40)]
        answers = unstreamed(running, {**asking, "inputs": texts})["predictions"]
        examples = [
            {"input": text, "output": found["answer"]} for text, found in zip(texts, answers, strict=True)
        ]
        calibrated = httpx.post(
            f"{running.url}/v1/adapters/{adapter_id}/calibrate",
            json={"examples": examples, "options": BODY["options"]},
        )
        assert calibrated.status_code == 200, calibrated.text
        answer, streamed = unstreamed(running, body), whole(stream(running, body))
    for found in (answer, streamed):
        ids = [prediction.pop("prediction_id") for prediction in found["predictions"]]
        assert len(set(ids)) == 2
    assert lasting(streamed) == lasting(answer)
    assert {"gate", "predictions"} <= set(streamed)
    assert all(prediction["prediction_set"]["options"] for prediction in streamed["predictions"])
