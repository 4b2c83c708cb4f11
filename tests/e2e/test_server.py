"""Few-shot classification over HTTP, on the quantised base with the shipped posterior."""

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.schemas import demo
from tests.e2e.conftest import Server
from tests.e2e.tickets import TICKETS

# Batches of other shapes sum bf16 products in another order. Measured differences of probabilities
# are below 0.02.
BF16_TOLERANCE = 0.03


def request(**changes: Any) -> dict[str, Any]:
    """Return a request with 16 labelled tickets and 50 new ones."""
    body = {key: demo.predict_body()[key] for key in ("support", "options")}
    return {**body, "inputs": [text for text, _ in TICKETS], "samples": 4, "seed": 7, **changes}


def post(server: Server, body: dict[str, Any]) -> httpx.Response:
    return server.client.post("/v1/predict", json=body)


def distributions(answer: dict[str, Any]) -> list[list[float]]:
    return [
        [row["probability"] for row in prediction["distribution"]] for prediction in answer["predictions"]
    ]


@pytest.fixture(scope="module")
def answer(server: Server) -> dict[str, Any]:
    response = post(server, request())
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_one_request_adapts_and_answers_fifty_inputs_sensibly(answer: dict[str, Any]) -> None:
    predictions = answer["predictions"]
    assert [prediction["index"] for prediction in predictions] == list(range(50))
    right = [
        prediction["answer"] == label for prediction, (_, label) in zip(predictions, TICKETS, strict=True)
    ]
    assert sum(right) >= 35
    for prediction in predictions:
        probabilities = {row["option"]: row["probability"] for row in prediction["distribution"]}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert prediction["answer"] == max(probabilities, key=probabilities.__getitem__)
        assert prediction["confidence"] == probabilities[prediction["answer"]]
        assert prediction["uncertainty"]["mutual_information"] > 0
    sure = [ok for ok, prediction in zip(right, predictions, strict=True) if prediction["confidence"] > 0.8]
    assert not sure or sum(sure) / len(sure) >= sum(right) / 50
    assert answer["cache"] == "miss"


def assert_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Check that answers are equal up to rounding.

    The size of a pass, and so the order of sums, depends on the speed of the machine at the start.
    """
    for a, b in zip(distributions(one), distributions(other), strict=True):
        assert a == pytest.approx(b, abs=BF16_TOLERANCE)


def test_the_same_request_gives_the_same_answer_from_the_cache_and_after_a_restart(
    server: Server, answer: dict[str, Any], data_dir: Path, tmp_path: Path
) -> None:
    again = post(server, request()).json()
    assert (again["cache"], again["adapter_id"]) == ("hit", answer["adapter_id"])
    assert_alike(again, answer)
    by_id = post(
        server, {**{k: v for k, v in request().items() if k != "support"}, "adapter_id": answer["adapter_id"]}
    )
    assert_alike(by_id.json(), answer)
    # With an empty store the server adapts again, to the same id and the same answer.
    with Server(tmp_path) as elsewhere:
        fresh = post(elsewhere, request()).json()
        assert (fresh["cache"], fresh["adapter_id"]) == ("miss", answer["adapter_id"])
        assert_alike(fresh, answer)
        assert elsewhere.stop() == 0
    with Server(tmp_path) as restarted:
        found = post(restarted, {"adapter_id": answer["adapter_id"], **request(support=None)})
        assert found.json()["cache"] == "hit", found.text
        assert_alike(found.json(), answer)
        assert restarted.stop() == 0


def test_batched_and_one_by_one_agree(server: Server, answer: dict[str, Any]) -> None:
    together = distributions(answer)
    for index in (0, 17, 42):
        alone = post(server, request(inputs=[TICKETS[index][0]])).json()
        assert distributions(alone)[0] == pytest.approx(together[index], abs=BF16_TOLERANCE)


def test_mean_only_has_no_spread_and_lies_among_the_samples(server: Server, answer: dict[str, Any]) -> None:
    mean = post(server, request(samples=0)).json()
    for none, some in zip(mean["predictions"], answer["predictions"], strict=True):
        assert none["samples"] == 0
        assert none["uncertainty"]["mutual_information"] == 0
        assert {row["std"] for row in none["distribution"]} == {0.0}
        assert max(row["std"] for row in some["distribution"]) > 0
    gaps = [
        abs(a - b)
        for m, s in zip(distributions(mean), distributions(answer), strict=True)
        for a, b in zip(m, s, strict=True)
    ]
    assert sum(gaps) / len(gaps) < 0.1


def test_the_gate_abstains_below_its_threshold_and_still_tells_the_score(
    server: Server, answer: dict[str, Any]
) -> None:
    gated = post(server, request(gate={"min_confidence": 0.7})).json()
    assert json.dumps(distributions(gated)) == json.dumps(distributions(answer))
    for prediction in gated["predictions"]:
        expected = "answer" if prediction["confidence"] >= 0.7 else "abstain"
        assert prediction["decision"] == expected
    assert {prediction["decision"] for prediction in gated["predictions"]} == {"answer", "abstain"}


def test_free_text_is_learnt_and_written(server: Server) -> None:
    capitals = {"Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Greece": "Athens", "Egypt": "Cairo"}
    support = [{"input": f"Capital of {country}?", "output": city} for country, city in capitals.items()]
    body = {"support": support, "inputs": ["Capital of France?"], "samples": 4, "max_new_tokens": 8}
    (prediction,) = post(server, body).json()["predictions"]
    assert prediction["answer"] == "Paris"
    assert 0 < prediction["confidence"] <= 1


def test_health_answers_while_the_model_works(server: Server) -> None:
    done = threading.Event()

    def work() -> None:
        post(server, request(seed=8, samples=0))
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    answered = 0
    while not done.is_set():
        with httpx.Client(base_url=server.client.base_url, timeout=10) as other:
            assert other.get("/livez").status_code == 200
            assert other.get("/readyz").status_code == 200
        answered += not done.is_set()
        done.wait(0.1)
    thread.join()
    assert answered >= 3


def test_a_prompt_beyond_the_context_is_refused_with_its_size(server: Server) -> None:
    long = "word " * 9000
    response = post(
        server, request(inputs=[long[:32000]], options=["yes", "no"], support=request()["support"])
    )
    assert response.status_code in {400, 413, 422}
    error = response.json()["error"]
    assert set(error) >= {"code", "message", "param", "request_id"}


def test_operations_surfaces(server: Server, answer: dict[str, Any]) -> None:
    get = server.client.get
    assert (
        get("/v1/models").status_code
        == get("/v1/limits").status_code
        == get("/v1/version").status_code
        == 200
    )
    listed = get("/v1/adapters").json()["data"]
    assert answer["adapter_id"] in {adapter["id"] for adapter in listed}
    assert "abmll_" in get("/metrics").text
    assert get("/docs").status_code == get("/openapi.json").status_code == 200
