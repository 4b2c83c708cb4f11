"""Predictions: their fields, that they repeat, and where options come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from abmll.prediction.settings import Thresholds
from abmll.text.tasks import shared_options
from service.schemas import demo
from tests.service.conftest import Server

SUPPORT = [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}]
GOOD: dict[str, Any] = {"support": SUPPORT, "options": ["yes", "no"], "inputs": ["fine", "awful"]}
LAST = ["cache", "timings", "request_id"]  # these may differ when a request is repeated


def shape(value: Any) -> Any:
    """Return the keys in order, with the types of their values."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def test_the_shape_of_an_answer_is_kept(server: Server) -> None:
    answer = server.post("/v1/predict", {**GOOD, "gate": {"min_confidence": 1.0}}).json()
    prediction = {
        "index": "int",
        "answer": "str",
        "confidence": "float",
        "confidence_kind": "str",
        "margin": "float",
        "decision": "str",
        "abstain_reason": "str",
        "distribution": [{"option": "str", "probability": "float", "std": "float"}],
        "uncertainty": {
            "total_entropy": "float",
            "expected_entropy": "float",
            "mutual_information": "float",
            "mc_standard_error": "float",
        },
        "samples": "int",
    }
    expected = {
        "adapter_id": "str",
        "predictions": [prediction],
        "usage": {"support_tokens": "int", "prompt_tokens": "int", "completion_tokens": "int"},
        "seed": "int",
        "warnings": [],
        "cache": "str",
        "timings": {
            "queue_seconds": "float",
            "adapt_seconds": "float",
            "predict_seconds": "float",
            "total_seconds": "float",
        },
        "request_id": "str",
    }
    assert json.dumps(shape(answer)) == json.dumps(expected)
    assert list(answer)[-3:] == LAST


def test_the_shape_of_an_adapter_is_kept(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        body = {"support": SUPPORT, "options": ["yes", "no"], "adapt": {"steps": 2}, "seed": 3}
        created = (await client.post("/v1/adapters", json=body)).json()
        got = (await client.get(f"/v1/adapters/{created['id']}")).json()
        assert {key: created[key] for key in got} == got
        assert list(created) == [*got, *LAST]
        assert got["object"] == "adapter"
        assert got["base"] == {"id": "fake-1b", "revision": "sha256:0", "quantisation": "none"}
        assert got["support"] == {"n": 2, "tokens": 17, "per_label": {"yes": 1, "no": 1}}
        assert got["options"] == ["yes", "no"]
        assert got["diagnostics"] == {"losses": [1.0, 0.5], "steps": 2}

    server.run(scenario)


@pytest.mark.parametrize("samples", [0, 1, 16])
def test_a_repeated_request_gets_the_same_bytes_up_to_cache_timings_and_request_id(
    tmp_path: Path, samples: int
) -> None:
    body = {**demo.predict_body(), "samples": samples}
    first = Server(tmp_path / "1").post("/v1/predict", body)
    second = Server(tmp_path / "2").post("/v1/predict", body)
    parts = [response.content.partition(b',"cache":')[0] for response in (first, second)]
    assert parts[0] == parts[1]
    assert len(parts[0]) > 1000


def test_another_seed_samples_otherwise_and_is_in_the_answer(tmp_path: Path) -> None:
    answers = [
        Server(tmp_path / str(seed)).post("/v1/predict", {**GOOD, "seed": seed}).json() for seed in (0, 1)
    ]
    assert [answer["seed"] for answer in answers] == [0, 1]
    assert answers[0]["predictions"] != answers[1]["predictions"]


def test_answers_agree_with_their_distributions(server: Server) -> None:
    answer = server.post("/v1/predict", demo.predict_body()).json()
    assert [p["index"] for p in answer["predictions"]] == list(range(len(demo.INPUTS)))
    for prediction in answer["predictions"]:
        assert [o["option"] for o in prediction["distribution"]] == demo.OPTIONS
        probabilities = sorted((o["probability"] for o in prediction["distribution"]), reverse=True)
        assert sum(probabilities) == pytest.approx(1)
        assert prediction["confidence"] == probabilities[0]
        assert prediction["margin"] == pytest.approx(probabilities[0] - probabilities[1])
        assert prediction["samples"] == 16
        abstains = prediction["confidence"] < 0.5
        assert prediction["decision"] == ("abstain" if abstains else "answer")
        assert prediction.get("abstain_reason") == ("confidence_below_minimum" if abstains else None)


def test_defaults_are_16_samples_and_seed_0_and_no_gate(server: Server) -> None:
    answer = server.post("/v1/predict", GOOD).json()
    assert answer["seed"] == 0
    assert {(p["samples"], p["decision"]) for p in answer["predictions"]} == {(16, "answer")}
    assert server.worker.predicted[0].settings.max_new_tokens == 32


def test_samples_auto_carries_the_gate_to_the_model_and_tells_what_was_used(server: Server) -> None:
    body = {**GOOD, "samples": "auto", "gate": {"min_confidence": 0.9, "max_mutual_information": 0.1}}
    answer = server.post("/v1/predict", body).json()
    (job,) = server.worker.predicted
    thresholds = Thresholds(min_confidence=0.9, max_mutual_information=0.1)
    assert (job.settings.samples, job.settings.thresholds) == ("auto", thresholds)
    assert {p["samples"] for p in answer["predictions"]} == {16}


def test_a_fixed_number_of_samples_does_not_depend_on_the_gate(server: Server) -> None:
    server.post("/v1/predict", {**GOOD, "samples": 4, "gate": {"min_confidence": 0.9}})
    assert server.worker.predicted[0].settings.thresholds == Thresholds()


def test_options_of_a_row_win_over_the_requests(server: Server) -> None:
    support = [*SUPPORT, {"input": "x", "output": "b", "options": ["a", "b"]}]
    inputs = ["fine", {"input": "what", "options": ["c", "d"]}, {"input": "else"}]
    server.post("/v1/predict", {**GOOD, "support": support, "inputs": inputs})
    assert [e.prompt.options for e in server.worker.adapted[0].examples] == [
        ("yes", "no"),
        ("yes", "no"),
        ("a", "b"),
    ]
    assert [q.options for q in server.worker.predicted[0].prompts] == [
        ("yes", "no"),
        ("c", "d"),
        ("yes", "no"),
    ]


@pytest.mark.parametrize("nothing", [{}, {"options": None}, {"options": []}])
def test_no_options_anywhere_means_free_text(server: Server, nothing: dict[str, Any]) -> None:
    body = {"support": [{"input": "2+2", "output": "four", **nothing}], "inputs": ["3+3"], **nothing}
    answer = server.post("/v1/predict", body).json()
    assert server.worker.predicted[0].prompts[0].options == ()
    assert answer["predictions"][0]["answer"] == "some text"
    assert answer["usage"]["completion_tokens"] > 0


def test_inputs_without_options_take_those_that_all_examples_share(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        support = [{**row, "options": ["yes", "no"]} for row in SUPPORT]
        inline = (await client.post("/v1/predict", json={"support": support, "inputs": ["fine"]})).json()
        body = {"adapter_id": inline["adapter_id"], "inputs": ["fine"]}
        by_id = (await client.post("/v1/predict", json=body)).json()
        assert [o["option"] for o in inline["predictions"][0]["distribution"]] == ["yes", "no"]
        assert by_id["predictions"] == inline["predictions"]

    server.run(scenario)


def test_options_given_for_all_and_options_given_by_row_are_the_same_adapter(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        rows = {"support": [{**row, "options": ["yes", "no"]} for row in SUPPORT]}
        whole = {"support": SUPPORT, "options": ["yes", "no"]}
        ids = [(await client.post("/v1/adapters", json=body)).json()["id"] for body in (rows, whole)]
        assert ids[0] == ids[1]

    server.run(scenario)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"truncate": True},
        {"adapt": {"steps": 5}},
        {"adapt": {"learning_rate": 0.1}},
        {"adapt": {"batch_size": 3}},
        {"adapt": {"beta": 0.5}},
        {"options": ["no", "yes"]},
        {"support": SUPPORT[::-1]},
    ],
)
def test_everything_that_changes_the_adapter_changes_its_id(server: Server, change: dict[str, Any]) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        body = {"support": SUPPORT, "options": ["yes", "no"]}
        ids = [
            (await client.post("/v1/adapters", json={**body, **more})).json()["id"] for more in ({}, change)
        ]
        assert ids[0] != ids[1]

    server.run(scenario)


def test_defaults_written_out_are_the_same_adapter(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        body = {"support": SUPPORT, "options": ["yes", "no"]}
        defaults = server.worker.served.defaults
        written_out = {
            "adapt": {"steps": defaults.steps, "learning_rate": defaults.learning_rate, "beta": 0},
            "seed": 0,
            "model": "fake-1b",
        }
        ids = [
            (await client.post("/v1/adapters", json={**body, **more})).json()["id"]
            for more in ({}, written_out)
        ]
        assert ids[0] == ids[1]

    server.run(scenario)


def test_an_effort_is_the_adapter_of_its_settings(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        body = {"support": SUPPORT, "options": ["yes", "no"]}
        full = server.worker.served.defaults
        fast = {"steps": 2, "learning_rate": 2 * full.learning_rate, "batch_size": 2 * full.batch_size}
        answers = [
            (await client.post("/v1/adapters", json={**body, "adapt": adapt})).json()
            for adapt in ({"effort": "fast"}, fast, {"effort": "full"}, {}, {"effort": "instant"})
        ]
        ids = [answer["id"] for answer in answers]
        assert ids[0] == ids[1] != ids[2] == ids[3]
        assert ids[4] not in ids[:4]
        assert answers[4]["diagnostics"] == {"losses": [], "steps": 0}
        more = (
            await client.post("/v1/adapters", json={**body, "adapt": {"effort": "fast", "steps": 1}})
        ).json()
        assert more["diagnostics"]["steps"] == 1
        wrong = await client.post("/v1/adapters", json={**body, "adapt": {"effort": "most"}})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "adapt.effort")

    server.run(scenario)


def test_usage_counts_the_adapters_support_even_when_it_was_there(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        usages = [(await client.post("/v1/predict", json=GOOD)).json()["usage"] for _ in range(2)]
        assert usages[0] == usages[1] == {"support_tokens": 17, "prompt_tokens": 9, "completion_tokens": 0}

    server.run(scenario)


def test_metrics_count_requests_tokens_cache_and_decisions(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for _ in range(2):
            await client.post("/v1/predict", json={**GOOD, "gate": {"min_confidence": 1.0}})
        await client.post("/v1/predict", json={})
        await client.get("/anything/at/all")
        text = (await client.get("/metrics")).text
        for line in (
            'abmll_requests_total{route="/v1/predict",status="200"} 2.0',
            'abmll_requests_total{route="/v1/predict",status="422"} 1.0',
            'abmll_requests_total{route="unmatched",status="404"} 1.0',
            'abmll_adapter_cache_total{outcome="miss"} 1.0',
            'abmll_adapter_cache_total{outcome="hit"} 1.0',
            'abmll_tokens_total{kind="support"} 17.0',
            'abmll_tokens_total{kind="prompt"} 18.0',
            'abmll_decisions_total{decision="abstain",reason="confidence_below_minimum"} 4.0',
            "abmll_confidence_count 4.0",
            "abmll_adapt_seconds_count 1.0",
            "abmll_predict_seconds_count 2.0",
            "abmll_adapt_steps_total 6.0",
            "abmll_samples_total 64.0",
            "abmll_requests_in_flight 0.0",
            "abmll_ready 1.0",
        ):
            assert line in text.splitlines(), line

    server.run(scenario)


def test_request_ids_are_taken_over_when_they_are_harmless(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for given, kept in {"abc-1.2_3": True, "a b": False, "x" * 129: False, "": False}.items():
            response = await client.get("/livez", headers={"x-request-id": given})
            assert (response.headers["x-request-id"] == given) is kept
        answer = await client.post("/v1/predict", json=GOOD, headers={"x-request-id": "mine"})
        assert answer.json()["request_id"] == answer.headers["x-request-id"] == "mine"

    server.run(scenario)


def test_the_access_log_has_the_request_and_nothing_of_its_body(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "service.access")
    body = {**GOOD, "inputs": ["a private matter"]}
    request_id = server.post("/v1/predict", body).headers["x-request-id"]
    (line,) = [record.getMessage() for record in caplog.records if record.name == "service.access"]
    assert line.startswith(f"{request_id} POST /v1/predict 200 ")
    assert "private" not in caplog.text


def test_shared_options_need_all_examples_to_agree() -> None:
    from abmll.text.tasks import Example

    a, b, c = Example("x", "1", ("1", "2")), Example("x", "2", ("2", "1")), Example("x", "2", ("2", "3"))
    assert shared_options([a, b]) == ("1", "2")
    assert shared_options([a, c]) == ()
    assert shared_options([]) == ()


def test_options_that_only_read_like_those_of_the_adapter_are_warned_of(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        adapter = (
            await client.post("/v1/adapters", json={"support": SUPPORT, "options": ["yes", "no"]})
        ).json()
        own = adapter["options"]
        for options, expected in (
            (own, []),
            ([own[0].upper(), *own[1:]], [own[0]]),
            ([option.upper() for option in own], own),
            (["something else", "nothing"], []),
        ):
            body = {"adapter_id": adapter["id"], "inputs": [{"input": "x", "options": options}]}
            warnings = (await client.post("/v1/predict", json=body)).json()["warnings"]
            assert warnings == [
                f"the option {option.upper()!r} is not the adapter's {option!r}, which it learned"
                for option in expected
            ]

    server.run(scenario)
