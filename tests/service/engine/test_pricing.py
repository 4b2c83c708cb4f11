"""Prices: what they are made of, and requests that are refused for theirs before any model work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from abmll.adaptation.settings import AdaptSettings
from abmll.assurance.folds import make_folds
from abmll.assurance.held_out import SAMPLES
from abmll.prediction.settings import PredictSettings
from abmll.text.tasks import Example, Query
from abmll.work import Speed, Work, WorkCounter
from service.engine.admission import admit_adapt, admit_predict
from service.engine.pricing import REFUSED_ABOVE, Price, price_of, worked_examples
from service.engine.requests import AdaptRequest, PredictRequest
from service.errors import PriceExceedsDeadlineError
from service.executors.contract import Prices, ServedModel
from service.settings import Settings
from tests.service.conftest import Server
from tests.service.engine.test_diagnose import OPTIONS, SUPPORT
from tests.service.fakes import FakeWorker, served_model

COUNTER = WorkCounter(trunk=1, mean=0, sampled=1, chunk_tokens=512, support_tokens=512, step_tokens=512)
# A token of the trunk takes a second, and one of a gradient step two; nothing else takes time.
SPEED = Speed(Work(frozen_tokens=1.0, learnt_tokens=2.0).amounts)
BODY: dict[str, Any] = {"support": SUPPORT, "options": OPTIONS}
EXAMPLES = tuple(Example(row["input"], row["output"], tuple(OPTIONS)) for row in SUPPORT)
LONG = "x" * 200


def priced() -> ServedModel:
    return replace(served_model(), prices=Prices(COUNTER, SPEED))


def priced_server(root: Path, **settings: Any) -> Server:
    return Server(root, FakeWorker(priced()), **settings)


# A row of the support: `text 0` has 6 tokens, and options of 3 and 2 add what stands behind their
# first.
ROW = 6 + 2 + 1


def test_an_adaptation_is_read_once_and_learnt_by_steps() -> None:
    spec = admit_adapt(AdaptRequest(EXAMPLES), priced(), Settings())
    price = price_of(priced(), spec, None)
    steps, batch = AdaptSettings().steps, min(AdaptSettings().batch_size, len(EXAMPLES))
    assert price == Price(len(EXAMPLES) * ROW + 2 * steps * batch * ROW)


def test_folds_are_adaptations_too_and_their_answers_are_predictions() -> None:
    spec = admit_adapt(AdaptRequest(EXAMPLES, calibration_folds=3), priced(), Settings())
    alone = [
        price_of(priced(), admit_adapt(AdaptRequest(support), priced(), Settings()), None)
        for support in (EXAMPLES, *(fold.support(EXAMPLES) for fold in make_folds(EXAMPLES, 3)))
    ]
    answers = sum(
        COUNTER.prediction(spec.prompts(fold.held_out), PredictSettings(SAMPLES)).frozen_tokens
        for fold in spec.folds
    )
    found = price_of(priced(), spec, None)
    assert found is not None
    assert len(spec.folds) == 3
    assert found.seconds == sum(one.seconds for one in alone if one) + answers


@pytest.mark.parametrize(("samples", "at_least"), [(4, False), ("auto", True)])
def test_a_prediction_is_priced_and_an_open_number_of_samples_is_said(samples: Any, at_least: bool) -> None:
    request = PredictRequest("adp", (Query("abc"), Query("defgh")), PredictSettings(samples))
    spec = admit_predict(request, priced(), Settings(), EXAMPLES, own_temperature=False)
    assert spec.fixed_classes
    assert price_of(priced(), None, spec) == Price(0.0, 3 + 5 + 2 * 3, at_least=at_least)


def test_free_text_is_priced_by_the_longest_label() -> None:
    support = (Example("a", "one"), Example("b", "three"))
    encoder = _Answering()
    served = replace(priced(), encoder=encoder)
    request = PredictRequest("adp", (Query("abc"),), PredictSettings(0, max_new_tokens=32))
    spec = admit_predict(request, served, Settings(), support, own_temperature=False)
    assert (spec.answer_tokens, spec.fixed_classes) == (5 + 1, False)
    # The prompt and six tokens are written; then the prompt and what precedes the last are scored.
    assert price_of(served, None, spec) == Price(0.0, (3 + 6) + (3 + 5))


class _Answering:
    """The fake encoder, with the continuation that a real one gives free-text examples."""

    max_tokens = 256

    def encode(self, query: Query, **more: Any) -> Any:
        return served_model().encoder.encode(query, **more)

    def encode_example(self, example: Example, *, truncate: bool = False) -> Any:
        encoded = served_model().encoder.encode_example(example, truncate=truncate)
        return replace(encoded, continuations=((*map(ord, example.output), 0),))


def test_a_worker_that_knows_no_speed_has_no_prices(server: Server) -> None:
    spec = admit_adapt(AdaptRequest(EXAMPLES), served_model(), Settings())
    assert price_of(served_model(), spec, None) is None
    assert worked_examples(served_model()) == ()
    server.set_deadline(5)
    assert server.post("/v1/adapters", BODY).status_code == 201


def test_workers_of_different_speed_are_equal() -> None:
    slow = priced()
    fast = replace(slow, prices=Prices(COUNTER, Speed(tuple(s / 2 for s in SPEED.seconds_of))))
    assert slow == fast
    assert slow.identity == fast.identity


# ---- over HTTP -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/adapters", BODY),
        ("/v1/adapters", {**BODY, "adapt": {"calibration_folds": 3}}),
        ("/v1/predict", {**BODY, "inputs": ["a"]}),
        ("/v1/predict", {**BODY, "inputs": ["a"], "stream": True}),
        (
            "/v1/classify",
            {
                "inputs": ["a"],
                "examples": [{"text": row["input"], "label": row["output"]} for row in SUPPORT],
            },
        ),
    ],
)
def test_what_makes_an_adapter_is_refused_before_any_work(
    tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    server = priced_server(tmp_path, deadline_seconds=60)
    answer = server.post(path, body)
    assert answer.status_code == (400 if path == "/v1/classify" else 422), answer.text
    assert "and its deadline is 60 s: send fewer or shorter texts, or raise deadline_seconds" in answer.text
    assert "the request would take about " in answer.text
    assert server.worker.adapted == server.worker.predicted == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/predict", {"adapter_id": "ID", "inputs": [LONG]}),
        ("/v1/predict", {"adapter_id": "ID", "inputs": [LONG], "stream": True}),
        ("/v1/adapters/ID/calibrate", {"examples": [{"input": LONG, "output": "yes"}]}),
        ("/v1/adapters/ID/diagnose", {}),
        ("/v1/chat/completions", {"model": "ID", "messages": [{"role": "user", "content": LONG}]}),
        (
            "/v1/chat/completions",
            {"model": "ID", "messages": [{"role": "user", "content": LONG}], "stream": True},
        ),
        ("/v1/completions", {"model": "ID", "prompt": [LONG]}),
        (
            "/v2/models/ID/infer",
            {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [LONG]}]},
        ),
    ],
)
def test_what_uses_an_adapter_is_refused_on_every_surface_and_shorter_texts_are_not(
    tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    server = priced_server(tmp_path, deadline_seconds=100_000)

    async def scenario(client: httpx.AsyncClient) -> None:
        name = (await client.post("/v1/adapters", json=BODY)).json()["id"]
        own = {
            key: value.replace("ID", name) if key in ("adapter_id", "model") else value
            for key, value in body.items()
        }
        server.set_deadline(120)
        refused = await client.post(path.replace("ID", name), json=own)
        assert refused.status_code in {400, 422}, refused.text
        assert "its deadline is 120 s" in refused.text
        if path.startswith("/v1/adapters") or path == "/v1/predict":
            assert refused.json()["error"]["code"] == "price_exceeds_deadline"
        assert (len(server.worker.adapted), server.worker.predicted) == (1, [])
        assert (
            await client.post("/v1/predict", json={"adapter_id": name, "inputs": ["a"]})
        ).status_code == 200
        if path == "/v1/predict":  # an adapter that is there costs nothing
            answer = await client.post(path, json={**BODY, "inputs": ["a"]})
            assert (answer.status_code, answer.json()["cache"]) == (200, "hit")

    server.run(scenario)


def test_limits_show_the_prices_of_requests_that_anyone_can_picture(tmp_path: Path) -> None:
    server = priced_server(tmp_path)

    async def scenario(client: httpx.AsyncClient) -> None:
        prices = (await client.get("/v1/limits")).json()["prices"]
        adapt = {
            (row["count"], row["tokens"], row["options"]): row["seconds"]
            for row in prices
            if row["what"] == "adapt"
        }
        steps, batch = AdaptSettings().steps, AdaptSettings().batch_size
        assert adapt[16, 64, 4] == 16 * 64 + 2 * steps * batch * 64
        assert {row["samples"] for row in prices if row["what"] == "adapt"} == {None}
        predict = {
            (row["count"], row["tokens"], row["samples"]): row["seconds"]
            for row in prices
            if row["what"] == "predict"
        }
        assert predict[64, 64, 16] == 64 * 64

    server.run(scenario)
    assert Server(tmp_path / "other").worker.served.prices is None


@pytest.mark.parametrize(
    ("price", "words"),
    [
        (Price(350, 62.4), "about 412 s on an idle worker (350 s to adapt, 62 s to predict)"),
        (Price(0, 311, at_least=True), "at least 311 s on an idle worker (0.0 s to adapt, 311 s to predict)"),
    ],
)
def test_the_error_says_price_deadline_and_what_to_change(price: Price, words: str) -> None:
    price.check(price.seconds)
    price.check(price.seconds / REFUSED_ABOVE + 0.1)  # it may be too high
    with pytest.raises(PriceExceedsDeadlineError) as caught:
        price.check(200)
    assert caught.value.message == (
        f"the request would take {words}, and its deadline is 200 s: send fewer or shorter texts, "
        "or raise deadline_seconds"
    )
    assert (caught.value.status, caught.value.retryable) == (422, False)
