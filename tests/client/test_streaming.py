"""Streamed predictions and followed adaptations, by both clients, from servers that listen."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from abmll_client import (
    Client,
    ConnectionFailedError,
    InvalidRequestError,
    NotFoundError,
    ServerError,
    TookTooLongError,
    UnavailableError,
    models,
)
from service.api.native import streaming
from service.embedded import Embedded
from tests.client.conftest import OPTIONS, SUPPORT
from tests.client.streams import KINDS, Kind, read
from tests.service.api.test_streaming import SteppedWorker
from tests.service.conftest import Listening, Server
from tests.service.engine.test_refining import SteppingWorker

FIELDS: dict[str, Any] = {"support": SUPPORT, "options": OPTIONS}
INPUTS = ["fine", "awful", "so so"]
DIFFER = {"cache", "timings", "request_id"}  # these differ when a request is repeated

both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def worker() -> SteppedWorker:
    return SteppedWorker()


@pytest.fixture
def server(tmp_path: Path, worker: SteppedWorker) -> Server:
    return Server(tmp_path, worker)


@pytest.fixture
def running(server: Server) -> Iterator[Listening]:
    with server.listening() as listening:
        yield listening


# ---- predictions ---------------------------------------------------------------------------------


@both
def test_the_end_of_a_stream_is_the_answer_of_predict(kind: Kind, running: Listening) -> None:
    for samples in (0, 1, 20, "auto"):
        events = read(kind, running.url, "stream", INPUTS, samples=samples, **FIELDS)
        with Client(running.url) as client:
            answer = client.predict(INPUTS, samples=samples, **FIELDS)
        settled = {event.data.index: event.data for event in events if event.name == "prediction"}
        assert [settled[index] for index in range(3)] == answer.predictions
        assert events[-1].name == "done"
        assert events[-1].data.model_dump(exclude=DIFFER) == answer.model_dump(exclude=DIFFER)


@both
def test_events_come_typed_and_in_order(kind: Kind, running: Listening) -> None:
    events = read(kind, running.url, "stream", INPUTS, samples=20, adapt={"steps": 3}, **FIELDS)
    names = [event.name for event in events if event.name != "refinement"]
    assert names == [*["step"] * 3, "adapter", *["prediction"] * 3, "done"]
    assert [(event.data.step, event.data.steps) for event in events[:3]] == [(1, 3), (2, 3), (3, 3)]
    done = events[-1].data
    assert events[3].data == models.AdapterFound(adapter_id=done.adapter_id, cache="miss", warnings=[])
    assert {event.data.samples for event in events if event.name == "refinement"} <= {8, 16}
    assert isinstance(done, models.PredictResponse)


@both
def test_a_prediction_comes_while_others_go_on(kind: Kind, running: Listening, worker: SteppedWorker) -> None:
    with Client(running.url) as client:
        client.create_adapter(SUPPORT, options=OPTIONS)
    worker.turns = threading.Semaphore(1)  # one unit: the first input is settled, the others never
    gate = {"min_confidence": 0.5}
    events = read(kind, running.url, "stream", INPUTS, samples="auto", gate=gate, most=2, **FIELDS)
    assert [(event.name, event.data.samples) for event in events[1:]] == [("prediction", 8)]


@both
def test_who_leaves_early_frees_the_place_at_the_server_and_in_the_client(
    kind: Kind, running: Listening, server: Server, worker: SteppedWorker
) -> None:
    with Client(running.url) as client:
        client.create_adapter(SUPPORT, options=OPTIONS)
    worker.turns = threading.Semaphore(1)
    events = read(kind, running.url, "stream", INPUTS, samples=64, most=2, **FIELDS)
    assert [event.name for event in events] == ["adapter", "refinement"]
    running.wait_for(lambda: server.engine.in_flight == 0)
    running.wait_for(lambda: server.engine.workers()[0].jobs == 0)
    worker.turns.release(100)
    running.wait_for(lambda: worker.unfinished == 0)


@both
def test_an_end_of_a_line_in_a_text_is_a_character_of_it(kind: Kind, running: Listening) -> None:
    labels = ["yes\u2028indeed", "no\x85thanks"]
    support = [(f"text {i} \u2029", label) for i, label in enumerate(labels * 2)]
    events = read(kind, running.url, "stream", ["a\u2028b"], support=support, options=labels)
    assert events[-1].data.predictions[0].answer in labels
    assert [option.option for option in events[-1].data.predictions[0].distribution] == labels


@both
def test_signs_of_life_are_no_events_and_silence_is_a_broken_connection(
    kind: Kind, running: Listening, worker: SteppedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.turns = threading.Semaphore(0)
    with pytest.raises(ConnectionFailedError, match="POST /v1/predict: ReadTimeout"):
        read(kind, running.url, "stream", INPUTS, client={"timeout": 0.2, "max_retries": 0}, **FIELDS)
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.02)
    timer = threading.Timer(0.2, lambda: worker.turns.release(100))
    timer.start()
    assert read(kind, running.url, "stream", INPUTS, **FIELDS)[-1].name == "done"
    timer.join()


def test_the_engine_of_this_process_gives_all_events_at_the_end(embedded: Embedded) -> None:
    with embedded.client() as client, client.stream(INPUTS, **FIELDS) as events:
        *_, last = events
        assert last.name == "done"
        assert last.data.predictions == client.predict(INPUTS, **FIELDS).predictions


# ---- what goes wrong -----------------------------------------------------------------------------


@both
def test_what_is_refused_raises_as_predict_does(kind: Kind, running: Listening) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read(kind, running.url, "stream", INPUTS, support=SUPPORT, options=["maybe", "no"])
    assert (caught.value.status, caught.value.code) == (422, "invalid_options")
    with pytest.raises(NotFoundError):
        read(kind, running.url, "stream", INPUTS, adapter_id="adp_00000000")
    with pytest.raises(TypeError, match="not one text"):
        read(kind, running.url, "stream", "one text", adapter_id="adp_0")


@both
def test_a_failure_midway_is_an_error_and_frees_the_place(
    kind: Kind, running: Listening, server: Server, worker: SteppedWorker
) -> None:
    usual = worker.advance

    def advance(runs: Any) -> None:
        if runs[0].units == 1:
            worker.fail = RuntimeError("secret")
        usual(runs)

    worker.advance = advance  # type: ignore[method-assign]
    with pytest.raises(ServerError) as caught:
        read(kind, running.url, "stream", INPUTS, samples=24, **FIELDS)
    assert (type(caught.value), caught.value.status, caught.value.code) == (
        ServerError,
        500,
        "internal_error",
    )
    assert not caught.value.retryable
    running.wait_for(lambda: server.engine.in_flight == 0)


def test_a_deadline_is_the_error_that_it_is_elsewhere(tmp_path: Path, worker: SteppedWorker) -> None:
    server = Server(tmp_path, worker, deadline_seconds=2)
    with server.listening() as running, Client(running.url, max_retries=0) as client:
        worker.turns = threading.Semaphore(2)
        with pytest.raises(TookTooLongError) as caught:
            list(client.stream(INPUTS, adapt={"steps": 5}, **FIELDS))
        worker.turns.release(100)
    assert (caught.value.status, caught.value.code) == (504, "deadline_exceeded")
    assert caught.value.retryable
    assert str(caught.value.adapter_id).startswith("adp_")


def test_a_server_that_shuts_down_says_so(server: Server, worker: SteppedWorker) -> None:
    with server.listening(drain_seconds=0.1) as running, Client(running.url) as client:
        worker.turns = threading.Semaphore(1)
        with client.stream(INPUTS, **FIELDS) as events:
            next(events)
            running.uvicorn.should_exit = True
            with pytest.raises(UnavailableError, match="draining"):
                list(events)
    worker.turns.release(100)


@contextmanager
def cutting(head: bytes, body: bytes) -> Iterator[str]:
    """A server that sends this much of an answer, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                received = b""
                while not received.endswith(b"}"):
                    received += connection.recv(65536)
                connection.sendall(head + body)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


STEP = b'event: step\ndata: {"step": 1, "steps": 9, "loss": 0.5}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


@both
@pytest.mark.parametrize(
    ("head", "body"),
    [
        (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"%x\r\n%s\r\n" % (len(STEP), STEP)),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (len(STEP), STEP)),
        (HEAD + b"connection: close\r\n\r\n", STEP + b"event: done\ndata: {"),
    ],
)
def test_a_connection_that_is_cut_is_never_an_end(kind: Kind, head: bytes, body: bytes) -> None:
    """In a chunk, at an end that looks whole (as a proxy makes it), and without a length."""
    with cutting(head, body) as url, pytest.raises(ConnectionFailedError) as caught:
        read(kind, url, "stream", INPUTS, adapter_id="adp_0")
    assert caught.value.retryable
    assert "POST /v1/predict" in str(caught.value)


# ---- long adaptations ----------------------------------------------------------------------------


@pytest.fixture
def stepping(tmp_path: Path) -> Server:
    return Server(tmp_path, SteppingWorker())


@both
def test_an_adaptation_is_followed_to_its_end(kind: Kind, stepping: Server) -> None:
    stepping.worker.step_gate.clear()
    with stepping.listening() as running, Client(running.url) as client:
        begun = client.begin_adapter(SUPPORT, options=OPTIONS)
        assert begun.status in ("queued", "running")
        assert client.begin_adapter(SUPPORT, options=OPTIONS).id == begun.id
        found = read(kind, running.url, "follow", begun.id, on_event=stepping.worker.step_gate.set)
        assert {progress.id for progress in found} == {begun.id}
        assert {progress.status for progress in found[:-1]} <= {"queued", "running"}
        assert len(found) >= 2
        assert found[-1] == client.progress(begun.id)
        assert found[-1].status == "succeeded"
        assert read(kind, running.url, "follow", begun.id) == [found[-1]]
        assert client.begin_adapter(SUPPORT, options=OPTIONS).status == "succeeded"
        with pytest.raises(NotFoundError):
            read(kind, running.url, "follow", "adp_00000000")
    assert len(stepping.worker.adapted) == 1


@both
def test_an_end_without_an_adapter_is_the_last_status(kind: Kind, stepping: Server) -> None:
    stepping.worker.step_gate.clear()
    with stepping.listening() as running, Client(running.url) as client:
        begun = client.begin_adapter(SUPPORT, options=OPTIONS)
        *_, last = read(kind, running.url, "follow", begun.id, on_event=lambda: client.cancel(begun.id))
        stepping.worker.step_gate.set()
    assert (last.status, last.error.code) == ("cancelled", "adaptation_cancelled")
