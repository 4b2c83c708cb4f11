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
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abmll_client import (
    AccessError,
    AsyncClient,
    Client,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
    UnreadableAnswerError,
    models,
)
from abmll_client.plans import batches
from service.embedded import Embedded
from tests.client.conftest import OPTIONS, SUPPORT
from tests.client.transports import refusal, transport
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
    assert len(methods(Client)) == 32


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
