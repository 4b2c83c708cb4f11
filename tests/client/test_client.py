"""The clients on the real application, and on transports that behave like a failing server."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import itertools
import json
import logging
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abmll_client import (
    AccessError,
    AsyncClient,
    BusyError,
    Client,
    ClientError,
    ConnectionFailedError,
    InvalidRequestError,
    NotFoundError,
    ServerError,
    StatusError,
    TookTooLongError,
    UnavailableError,
    UnreadableAnswerError,
    models,
)
from abmll_client.errors import retry_after_seconds
from abmll_client.plans import batches
from service.embedded import Embedded
from tests.client.conftest import OPTIONS, SUPPORT
from tests.service.conftest import Server

TEXTS = [f"text {i}" for i in range(7)]


@pytest.fixture
def client(embedded: Embedded) -> Iterator[Client]:
    with embedded.client() as connected:
        yield connected


@contextlib.asynccontextmanager
async def connected(server: Server) -> AsyncIterator[AsyncClient]:
    """Yield an asynchronous client of the application, on this event loop."""
    async with (
        server.running(),
        AsyncClient("http://server", transport=httpx.ASGITransport(server.app)) as client,
    ):
        yield client


# ---- the native surface --------------------------------------------------------------------------


def test_adapters_are_made_found_listed_pinned_and_deleted(client: Client, server: Server) -> None:
    made = [client.create_adapter(SUPPORT, options=OPTIONS, seed=seed) for seed in range(5)]
    assert [adapter.cache for adapter in made] == ["miss"] * 5
    rows = [{"input": text, "output": label, "options": OPTIONS} for text, label in SUPPORT]
    again = client.create_adapter(rows)
    assert (again.id, again.cache) == (made[0].id, "hit")
    assert [adapter.id for adapter in client.adapters(page_size=2)] == sorted(a.id for a in made)
    assert list(client.adapters(page_size=2)) == list(client.adapters())
    assert client.adapter(again.id).support.per_label == {"yes": 2, "no": 2}
    assert client.pin(again.id).pinned is True
    assert client.unpin(again.id).pinned is False
    assert client.delete(again.id).deleted
    with pytest.raises(NotFoundError) as caught:
        client.adapter(again.id)
    assert (caught.value.status, caught.value.code) == (404, "unknown_adapter")
    assert len(list(client.adapters())) == 4


def test_predictions_are_those_that_the_surface_answers(client: Client, server: Server) -> None:
    answer = client.predict(TEXTS, support=SUPPORT, options=OPTIONS, samples=4, gate={"min_confidence": 0.6})
    body = {
        "support": [{"input": text, "output": label} for text, label in SUPPORT],
        "options": OPTIONS, "inputs": TEXTS, "samples": 4, "gate": {"min_confidence": 0.6},
    }  # fmt: skip
    raw = client._http.post("/v1/predict", json=body).json()
    assert answer.model_dump(mode="json", exclude_none=True)["predictions"] == raw["predictions"]
    assert {prediction.decision for prediction in answer.predictions} == {"answer", "abstain"}
    by_id = client.predict(TEXTS, adapter_id=answer.adapter_id, samples=4, gate={"min_confidence": 0.6})
    assert by_id.predictions == answer.predictions


def test_operations(client: Client, server: Server) -> None:
    assert [model.id for model in client.models()] == [server.worker.served.base.id]
    assert client.limits().max_inputs == server.settings.max_inputs
    assert client.ready() is True
    client.wait_until_ready(1)
    server.engine.drain()
    assert client.ready() is False
    with pytest.raises(UnavailableError) as caught:
        client.wait_until_ready(0)
    assert (caught.value.code, caught.value.retry_after_seconds) == ("draining", 10)


def test_the_asynchronous_client_answers_as_the_blocking_one_does(
    client: Client, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The asynchronous client is that of a second server, which makes the adapters anew."""
    other = Server(tmp_path_factory.mktemp("other"), max_inputs=3)

    async def scenario() -> None:
        async with connected(other) as theirs:
            await theirs.wait_until_ready(1)
            made = [await theirs.create_adapter(SUPPORT, options=OPTIONS, seed=seed) for seed in range(3)]
            assert [a.id async for a in theirs.adapters(page_size=2)] == sorted(a.id for a in made)
            ours = client.create_adapter(SUPPORT, options=OPTIONS)
            assert (await theirs.adapter(made[0].id)).id == ours.id == made[0].id
            answer = await theirs.predict(TEXTS[:3], adapter_id=ours.id)
            assert answer.predictions == client.predict(TEXTS[:3], adapter_id=ours.id).predictions
            every = await theirs.predict_all(TEXTS, adapter_id=ours.id)
            assert every == client.predict(TEXTS, adapter_id=ours.id).predictions
            frames = [
                await theirs.predict_frame(_frame(), adapter_id=ours.id),
                client.predict_frame(_frame(), adapter_id=ours.id),
            ]
            assert frames[0].equals(frames[1])
            assert next(m.id for m in await theirs.models()) == client.models()[0].id
            assert await theirs.ready()
            assert (await theirs.limits()).max_inputs == 3
            assert (await theirs.pin(ours.id)).pinned
            assert not (await theirs.unpin(ours.id)).pinned
            await theirs.delete(ours.id)
            with pytest.raises(NotFoundError):
                await theirs.adapter(ours.id)

    asyncio.run(scenario())


def _frame() -> Any:
    import pandas as pd

    return pd.DataFrame({"text": TEXTS})


def test_a_refusal_has_the_fields_of_the_error_object(client: Client) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.predict(["x"], support=[("good", "yes"), ("bad", "other")], options=OPTIONS)
    error = caught.value
    assert (error.status, error.code, error.param) == (422, "invalid_options", "support[1].output")
    assert len(error.request_id) == 32
    assert error.request_id in str(error)
    assert not error.retryable
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), vars(copied)) == (type(error), vars(error))


@pytest.mark.parametrize("wrong", ["one text", "good"])
def test_one_text_is_not_taken_for_a_list_of_letters(client: Client, wrong: str) -> None:
    with pytest.raises(TypeError, match="not one text"):
        client.predict(wrong, adapter_id="adp_0")


def test_an_id_stays_one_segment_of_the_path(client: Client) -> None:
    for strange in ("../limits", "a/b?c#d", "ä b"):
        with pytest.raises(NotFoundError):
            client.adapter(strange)
    with pytest.raises(ValueError, match="empty"):
        client.delete("")


# ---- any number of inputs ------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{"max_inputs": 3}, {"max_body_bytes": 1024}])
def test_many_inputs_are_split_and_answered_as_in_one_request(
    client: Client, tmp_path_factory: pytest.TempPathFactory, limits: dict[str, int]
) -> None:
    texts = [f"{i} " + "long é " * (i % 20) for i in range(40)]
    whole = client.predict(texts, support=SUPPORT, options=OPTIONS, seed=3).predictions
    other = Server(tmp_path_factory.mktemp("other"), **limits)
    running = Embedded(other.app)
    with contextlib.closing(running), running.client() as narrow:
        pieces = narrow.predict_all(texts, support=SUPPORT, options=OPTIONS, seed=3, adapt=None)
        assert len(other.worker.adapted) == 1
        assert len(other.worker.predicted) > 5
    assert pieces == whole
    assert [prediction.index for prediction in pieces] == list(range(40))


def test_no_inputs_need_no_server() -> None:
    with Client("http://127.0.0.1:9", max_retries=0) as nowhere:
        assert nowhere.predict_all([], adapter_id="adp_0") == []


@given(
    st.lists(st.text(max_size=20) | st.fixed_dictionaries({"input": st.text(max_size=9)}), max_size=30),
    st.integers(1, 10),
    st.integers(0, 200),
)
def test_batches_keep_order_and_limits(rows: list[Any], most_rows: int, most_bytes: int) -> None:
    pieces = list(batches(rows, most_rows, most_bytes))
    assert [row for piece in pieces for row in piece] == rows
    for piece in pieces:
        assert 1 <= len(piece) <= most_rows
        assert (
            len(piece) == 1
            or len(json.dumps(piece, ensure_ascii=False).encode("utf-8", "surrogatepass")) <= most_bytes
        )
    # No piece is cut too early.
    for one, following in itertools.pairwise(pieces):
        assert len(one) == most_rows or len(json.dumps([*one, following[0]])) > most_bytes - 2


# ---- a newer server ------------------------------------------------------------------------------


def transport(
    *answers: httpx.Response | Exception,
) -> httpx.MockTransport:
    """Return a transport that gives `answers` in turn, then the last one again.

    Its `requests` are those that came.
    """
    requests: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        answer = answers[min(len(requests), len(answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    mock = httpx.MockTransport(handle)
    mock.requests = requests  # type: ignore[attr-defined]
    return mock


def widened(value: Any) -> Any:
    """Return `value` with one more field in every object, except where keys are labels."""
    if isinstance(value, list):
        return [widened(item) for item in value]
    if isinstance(value, dict):
        return {**{k: v if k == "per_label" else widened(v) for k, v in value.items()}, "not_yet": {"x": [1]}}
    return value


def test_fields_of_a_newer_server_are_left_out_at_every_depth(client: Client) -> None:
    answer = client.predict(["x"], support=SUPPORT, options=OPTIONS)
    adapter = client.adapter(answer.adapter_id)
    for known, call in ((answer, lambda c: c.predict(["x"])), (adapter, lambda c: c.adapter("adp_0"))):
        newer = widened(known.model_dump(mode="json", exclude_none=True))
        with Client(transport=transport(httpx.Response(200, json=newer))) as old:
            assert call(old) == known


@pytest.mark.parametrize("content", [b"<html>", b"{}", b'{"status": 1}', b"[]"])
def test_an_error_for_an_answer_in_another_form_names_the_field_but_not_the_content(content: bytes) -> None:
    with (
        Client(transport=transport(httpx.Response(200, content=content))) as old,
        pytest.raises(
            UnreadableAnswerError, match=r"GET /readyz: (the body|status) is not as a Health has it"
        ),
    ):
        old.ready()


# ---- retries -------------------------------------------------------------------------------------


def refusal(status: int, code: str = "some_code", **headers: str) -> httpx.Response:
    body = {"error": {"code": code, "message": "said", "param": None, "request_id": "r1", "x": 1}}
    return httpx.Response(status, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


OK = httpx.Response(200, json={"object": "list", "data": []})


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the list of the seconds that clients would have slept."""
    seconds: list[float] = []

    async def asleep(delay: float) -> None:
        seconds.append(delay)

    monkeypatch.setattr("time.sleep", seconds.append)
    monkeypatch.setattr("asyncio.sleep", asleep)
    return seconds


@pytest.mark.parametrize(
    ("status", "code", "kind", "again"),
    [
        (400, "malformed_json", InvalidRequestError, False),
        (401, "http_401", AccessError, False),
        (404, "not_found", NotFoundError, False),
        (408, "slow", TookTooLongError, True),
        (413, "body_too_large", InvalidRequestError, False),
        (422, "invalid_request", InvalidRequestError, False),
        (422, "price_exceeds_deadline", InvalidRequestError, False),
        (429, "queue_full", BusyError, True),
        (500, "internal_error", ServerError, False),
        (502, "bad_gateway", UnavailableError, True),
        (503, "starting", UnavailableError, True),
        (503, "load_failed", UnavailableError, False),
        (504, "deadline_exceeded", TookTooLongError, True),
    ],
)
def test_only_what_may_succeed_later_is_sent_again(
    slept: list[float], status: int, code: str, kind: type[StatusError], again: bool
) -> None:
    sent = transport(refusal(status, code), OK)
    with Client(transport=sent) as client:
        if again:
            assert client.models() == []
        else:
            with pytest.raises(ClientError) as caught:
                client.models()
            assert type(caught.value) is kind
            assert (caught.value.code, caught.value.message, caught.value.request_id) == (code, "said", "r1")
    assert len(sent.requests) == 1 + again == 1 + len(slept)
    with Client(transport=transport(refusal(status, code)), max_retries=0) as client, pytest.raises(kind):
        client.models()


@pytest.mark.parametrize(
    "error", [httpx.ConnectError, httpx.ReadError, httpx.ReadTimeout, httpx.RemoteProtocolError]
)
def test_broken_connections_are_tried_again_and_then_raised(
    slept: list[float], error: type[Exception]
) -> None:
    with Client(transport=transport(error("gone"), error("gone"), OK)) as client:
        assert client.models() == []
    sent = transport(error("gone"))
    with Client(transport=sent, max_retries=2) as client, pytest.raises(ConnectionFailedError, match="gone"):
        client.models()
    assert len(sent.requests) == 3
    assert len(slept) == 4


def test_what_is_sent_again_is_the_same(slept: list[float]) -> None:
    sent = transport(refusal(504), refusal(429), refusal(503))
    with Client(transport=sent, max_retries=2) as client, pytest.raises(UnavailableError):
        client.create_adapter(SUPPORT, options=OPTIONS, seed=5)
    bodies = {request.content for request in sent.requests}
    assert len(sent.requests) == 3
    assert json.loads(*bodies) == {
        "support": [{"input": text, "output": label} for text, label in SUPPORT],
        "options": OPTIONS,
        "seed": 5,
    }


def test_a_wait_is_as_long_as_the_server_asks_up_to_a_minute_and_half_as_long_again(
    slept: list[float],
) -> None:
    in_20_seconds = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    answers = [refusal(429, retry_after=value) for value in ("7", in_20_seconds, "86400", "0")]
    with Client(transport=transport(*answers, OK), max_retries=4) as client:
        client.models()
    for waited, asked in zip(slept, (7, 19, 60, 0), strict=True):
        assert asked <= waited <= 1.5 * asked + 3


def test_clients_that_are_refused_together_do_not_come_back_together(slept: list[float]) -> None:
    """Also where the wait is longer than the longest: the bound came after the spread before."""
    for asked in ("60", "600"):
        slept.clear()
        with Client(transport=transport(refusal(429, retry_after=asked)), max_retries=3) as client:
            for _ in range(100):
                with pytest.raises(BusyError):
                    client.models()
        assert 60 <= min(slept) < 63
        assert 87 < max(slept) <= 90
        assert len(set(slept)) == 300


def test_without_retry_after_waits_are_spread_over_windows_that_double(slept: list[float]) -> None:
    with Client(transport=transport(refusal(503)), max_retries=4) as client:
        for _ in range(200):
            with pytest.raises(UnavailableError):
                client.models()
    for i, window in enumerate((0.5, 1, 2, 4)):
        waits = slept[i::4]
        assert max(waits) <= window
        assert min(waits) < 0.1 * window  # full jitter starts at 0
        assert sum(waits) / len(waits) == pytest.approx(window / 2, rel=0.25)


def test_the_asynchronous_client_retries_alike(slept: list[float]) -> None:
    async def scenario() -> None:
        answers = (httpx.ConnectError("gone"), refusal(429, retry_after="3"), OK)
        async with AsyncClient(transport=transport(*answers)) as client:
            assert await client.models() == []
        async with AsyncClient(transport=transport(refusal(422))) as client:
            with pytest.raises(InvalidRequestError):
                await client.models()

    asyncio.run(scenario())
    assert len(slept) == 2
    assert 3 <= slept[1] <= 4.5


@pytest.mark.parametrize("text", ["", "soon", "-1", "nan", "inf", "1e999", "Mon, 99 Foo"])
def test_a_retry_after_that_says_nothing_is_none(text: str) -> None:
    assert retry_after_seconds(text) is None


def test_a_date_in_the_past_is_now() -> None:
    assert retry_after_seconds("Sun, 06 Nov 1994 08:49:37 GMT") == 0


def test_waiting_until_ready_polls_and_ends_at_once_where_there_is_no_hope(slept: list[float]) -> None:
    starting = [httpx.ConnectError("refused"), refusal(503, "starting", retry_after="5")]
    with Client(transport=transport(*starting, httpx.Response(200, json={"status": "ready"}))) as client:
        client.wait_until_ready(60)
    assert slept == [0.5, 0.5]
    with (
        Client(transport=transport(refusal(503, "load_failed"))) as client,
        pytest.raises(UnavailableError, match="load_failed"),
    ):
        client.wait_until_ready(60)
    assert len(slept) == 2


def test_an_error_of_somebody_in_between_is_read_as_far_as_it_goes() -> None:
    page = httpx.Response(403, text="<html>no</html>", headers={"x-request-id": "r9"})
    with Client(transport=transport(page)) as client, pytest.raises(AccessError) as caught:
        client.models()
    assert (caught.value.code, caught.value.message, caught.value.request_id) == (
        "http_403",
        "Forbidden",
        "r9",
    )


# ---- secrets, copies, weight ---------------------------------------------------------------------


def test_headers_are_sent_and_appear_nowhere_else(
    slept: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sent = transport(refusal(503, "starting"))
    url = "http://user:password@host"
    with Client(url, transport=sent, headers={"x-api-key": "hush"}) as client:
        with pytest.raises(UnavailableError) as caught:
            client.create_adapter([("private text", "a")])
        shown = [repr(client), str(caught.value), repr(caught.value), caplog.text]
    assert len([record for record in caplog.records if record.name.startswith("abmll_client")]) == 3
    assert "starting" in caplog.text
    assert sent.requests[0].headers["x-api-key"] == "hush"
    assert sent.requests[0].headers["authorization"].startswith("Basic ")
    for secret in ("hush", "password", "private text"):
        assert not any(secret in text for text in shown)


@pytest.mark.parametrize(
    ("given", "environment", "headers", "sent_key"),
    [
        ("own", "other", None, "own"),
        (None, " other ", None, "other"),
        (None, None, None, None),
        ("", "other", None, None),
        ("own", "other", {"X-API-Key": "header"}, "header"),
        ("own", None, {"Authorization": "Bearer header"}, None),
    ],
)
def test_the_key_is_the_given_one_or_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
    given: str | None,
    environment: str | None,
    headers: dict[str, str] | None,
    sent_key: str | None,
) -> None:
    monkeypatch.delenv("ABMLL_API_KEY", raising=False)
    if environment is not None:
        monkeypatch.setenv("ABMLL_API_KEY", environment)
    sent = transport(refusal(401, "invalid_api_key"))
    with Client("http://host", transport=sent, api_key=given, headers=headers) as client:
        with pytest.raises(AccessError):
            client.adapter("adp_0")
        assert "own" not in repr(client)
    (request,) = sent.requests  # a wrong key is not tried again
    assert request.headers.get("x-api-key") == sent_key


def test_a_quota_that_is_used_up_is_not_tried_again(slept: list[float]) -> None:
    sent = transport(refusal(429, "quota_exceeded"))
    with Client("http://host", transport=sent) as client, pytest.raises(AccessError):
        client.create_adapter([("text", "a")])
    assert len(sent.requests) == 1
    assert slept == []


def test_a_copy_is_the_same_client() -> None:
    with Client() as client:
        assert copy.deepcopy({"client": client})["client"] is client


def test_importing_the_client_is_light() -> None:
    heavy = [
        "torch",
        "transformers",
        "abmll",
        "model_store",
        "service",
        "fastapi",
        "pandas",
        "sklearn",
        "numpy",
    ]
    code = f"import abmll_client, sys; print([name for name in {heavy!r} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert printed.stdout.strip() == "[]"


def test_a_server_that_listens_is_reached(tmp_path: Path) -> None:
    server = Server(tmp_path)
    with server.listening() as running, Client(running.url) as client:
        client.wait_until_ready(20)
        assert [
            p.answer in OPTIONS for p in client.predict(TEXTS, support=SUPPORT, options=OPTIONS).predictions
        ]


# ---- diagnosis and calibrated gates --------------------------------------------------------------


def test_an_adapter_is_diagnosed(client: Client) -> None:
    adapter = client.create_adapter(SUPPORT, options=OPTIONS)
    found = client.diagnose(adapter.id, folds=2, samples=4)
    assert (found.adapter_id, found.asked_folds, found.samples, found.held_out.n) == (adapter.id, 2, 4, 4)
    assert client.adapter(adapter.id).diagnosis == models.Diagnosis(
        **{name: getattr(found, name) for name in models.Diagnosis.model_fields}
    )


def test_a_calibration_of_several_requests_is_one_look_and_its_gate_takes_feedback(
    tmp_path: Path,
) -> None:
    server = Server(tmp_path, max_inputs=16, feedback_share=1.0)
    running = Embedded(server.app)
    with running.client() as client:
        adapter = client.create_adapter(SUPPORT, options=OPTIONS)
        texts = [f"text {i}" for i in range(40)]
        right = [p.answer for p in client.predict_all(texts, adapter_id=adapter.id)]
        made = client.calibrate(adapter.id, zip(texts, right, strict=True), options=OPTIONS)
        assert (made.n, made.state, made.accuracy) == (40, "active", 1.0)
        assert client.calibration(adapter.id) == made
        again = client.calibrate(
            adapter.id, zip(texts[:30], right, strict=False), options=OPTIONS, replace=True
        )
        assert again.n == 30
        answer = client.predict(
            ["new"], adapter_id=adapter.id, gate={"target_error": 0.2}, set={"alpha": 0.2}
        )
        (prediction,) = answer.predictions
        assert answer.gate and answer.gate.target_error == 0.2
        assert prediction.prediction_id and prediction.prediction_set
        stored = client.feedback(adapter.id, {prediction.prediction_id: prediction.answer})
        assert (stored.stored, stored.asked, stored.calibration.n) == (1, 1, 31)
        assert client.delete_calibration(adapter.id).deleted
        with pytest.raises(InvalidRequestError, match="not calibrated"):
            client.calibration(adapter.id)
    running.close()


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    def methods(client: type) -> dict[str, list[inspect.Parameter]]:
        found = {
            n: m for n, m in vars(client).items() if not n.startswith("_") and n not in ("close", "aclose")
        }
        return {name: list(inspect.signature(method).parameters.values()) for name, method in found.items()}

    assert methods(Client) == methods(AsyncClient)
    assert len(methods(Client)) == 29


def test_the_asynchronous_client_diagnoses_and_calibrates(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(Server(tmp_path, feedback_share=1.0)) as client:
            adapter = await client.create_adapter(SUPPORT, options=OPTIONS)
            assert (await client.diagnose(adapter.id, folds=2)).folds == 2
            made = await client.calibrate(adapter.id, [("text 1", "yes"), ("text 2", "no")], options=OPTIONS)
            assert await client.calibration(adapter.id) == made
            answer = await client.predict(["new"], adapter_id=adapter.id, log=True)
            id = answer.predictions[0].prediction_id
            assert id and (await client.feedback(adapter.id, {id: "yes"})).stored == 1
            assert (await client.delete_calibration(adapter.id)).deleted

    asyncio.run(scenario())
