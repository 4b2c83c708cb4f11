"""Calibrated gates through HTTP, on the fake model.

Inputs determine its answers, so tests choose which of them are right.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import httpx
import pytest

from abmll.assurance.certificates import Certificate, certify_looks, threshold_for_coverage
from abmll.assurance.conformal import conformal_quantile
from service.errors import CannotCertifyError
from service.gating.confidence import Confidence
from tests.service.conftest import Server
from tests.service.gating.calling import OPTIONS, TARGET, Caller, error, texts


def test_a_certified_gate_decides_by_the_threshold_that_the_statistics_give(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        inputs = texts("calibration", 60)
        confidences = [p["confidence"] for p in await caller.predictions(inputs)]
        least_sure = sorted(range(60), key=confidences.__getitem__)[:25]
        calibration = await caller.calibrate(inputs, wrong=least_sure)
        assert calibration["n"] == 60
        assert calibration["accuracy"] == pytest.approx(35 / 60)
        correct = [i not in least_sure for i in range(60)]
        expected = certify_looks(confidences, correct, 0.2, 0.1, 60)
        assert isinstance(expected, Certificate)
        assert 0 < expected.coverage < 1
        answer = (await caller.ask(texts("new", 40), gate=TARGET)).json()
        assert answer["gate"] == {
            "calibration_id": calibration["id"],
            "version": 1,
            "threshold": expected.threshold,
            "n": 60,
            "coverage": expected.coverage,
            "target_error": 0.2,
            "delta": 0.1,
            "error_upper_bound": expected.error_upper_bound,
        }
        decisions = {p["decision"] for p in answer["predictions"]}
        assert decisions == {"answer", "abstain"}
        for p in answer["predictions"]:
            assert (p["decision"] == "answer") == (p["confidence"] >= expected.threshold)
            assert p["prediction_id"].startswith("prd_")
        (report,) = [c for c in calibration["certificates"] if c["target_error"] == 0.2]
        assert report["certified"]
        assert report["threshold"] == expected.threshold
        (strict,) = [c for c in calibration["certificates"] if c["target_error"] == 0.02]
        assert not strict["certified"]
        assert strict["about_n_more_labels"] > 0

    server.run(scenario)


def test_a_target_coverage_is_a_rank_of_the_confidences(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        inputs = texts("calibration", 30)
        confidences = [p["confidence"] for p in await caller.predictions(inputs)]
        await caller.calibrate(inputs, wrong=range(20))
        answer = (await caller.ask(["x"], gate={"target_coverage": 0.8})).json()
        expected = threshold_for_coverage(confidences, 0.8)
        assert answer["gate"]["threshold"] == expected.threshold
        assert (answer["gate"]["coverage"], answer["gate"]["target_coverage"]) == (expected.coverage, 0.8)
        assert "error_upper_bound" not in answer["gate"]

    server.run(scenario)


def test_prediction_sets_follow_the_quantile_and_say_when_labels_are_too_few(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        inputs = texts("calibration", 12)
        examples = await caller.examples(inputs, wrong=[0, 1, 2])
        scores = [
            1 - next(o["probability"] for o in p["distribution"] if o["option"] == e["output"])
            for p, e in zip(await caller.predictions(inputs), examples, strict=True)
        ]
        await caller.post("calibrate", {"examples": examples})
        expected = conformal_quantile(scores, 0.2)
        for p in await caller.predictions(texts("new", 10), set={"alpha": 0.2}):
            found = p["prediction_set"]
            assert found["valid_for_alpha"] is True
            assert found["coverage"] == expected.coverage
            inside = {o["option"] for o in p["distribution"] if 1 - o["probability"] <= expected.q}
            assert set(found["options"]) == inside | {p["answer"]}
        (p,) = await caller.predictions(["new"], set={"alpha": 0.05})
        assert p["prediction_set"]["valid_for_alpha"] is False
        assert set(p["prediction_set"]["options"]) == set(OPTIONS)
        assert p["prediction_set"]["coverage"] == 1
        assert "fewer than the 19" in p["prediction_set"]["note"]

    server.run(scenario)


def test_without_calibration_nothing_is_decided_silently(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        for fields in (
            {"gate": TARGET},
            {"gate": {"target_coverage": 0.5}},
            {"set": {"alpha": 0.1}},
            {"log": True},
        ):
            assert error(await caller.ask(["x"], **fields))["code"] == "calibration_missing"
        assert error(await caller.calibration())["code"] == "calibration_missing"
        assert server.worker.predicted == []

    server.run(scenario)


def test_the_error_for_too_few_labels_says_how_many_more(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        await caller.calibrate(texts("calibration", 10))
        before = len(server.worker.predicted)
        refusal = error(await caller.ask(["x"], gate=TARGET))
        assert refusal["code"] == "cannot_certify"
        assert refusal["about_n_more_labels"] == 5, "the next look is at 15 labels, and 14 right ones suffice"
        assert "cannot certify yet: about 5 more labels" in refusal["message"]
        assert len(server.worker.predicted) == before
        await caller.calibrate(texts("more", 5))
        assert (await caller.ask(["x"], gate=TARGET)).status_code == 200

        hopeless = await Caller.of(client, ["yes", "no", "perhaps", "other"])
        rows = [{"input": t, "output": "other"} for t in texts("calibration", 40)]
        await hopeless.post("calibrate", {"examples": rows})
        refusal = error(await hopeless.ask(["x"], gate={"target_error": 0.01}))
        assert refusal["code"] == "cannot_certify"

    server.run(scenario)


def test_the_number_of_labels_is_null_where_more_promise_nothing(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        await caller.calibrate(texts("calibration", 40), wrong=range(40))
        refusal = error(await caller.ask(["x"], gate=TARGET))
        assert (refusal["code"], refusal["about_n_more_labels"]) == ("cannot_certify", None)

    server.run(scenario)
    refusal = pickle.loads(pickle.dumps(CannotCertifyError("no", "gate", about_n_more_labels=7)))
    assert refusal.details == {"about_n_more_labels": 7}


def test_examples_of_one_set_in_several_requests_are_one_look(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        first = await caller.calibrate(texts("a", 7), more_follow=True)
        assert (first["state"], first["certificates"], "accuracy" in first) == ("incomplete", [], False)
        refusal = error(await caller.ask(["x"], gate=TARGET))
        assert refusal["code"] == "calibration_missing"
        assert "more_follow" in refusal["message"]
        assert (await caller.calibrate(texts("b", 7)))["state"] == "active"
        assert (await caller.ask(["x"], gate=TARGET)).status_code == 200, "14 right ones in one look"

        apart = await Caller.of(client, [*OPTIONS, "other"])
        for name in ("a", "b"):
            rows = await apart.examples(texts(name, 7))
            await apart.post("calibrate", {"examples": rows, "options": [*OPTIONS, "other"]})
        refusal = error(await apart.ask(["x"], gate=TARGET))
        assert refusal["code"] == "cannot_certify", "looks are at 7, 11, 17"

    server.run(scenario)


def test_examples_that_are_blind_to_an_option_are_warned_of(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        rows = [{"input": f"case {i}", "output": OPTIONS[0]} for i in range(6)]
        (warning,) = (await caller.post("calibrate", {"examples": rows})).json()["warnings"]
        assert warning.startswith(f"no example that counts is labelled {OPTIONS[1]!r}")
        rows = [{"input": f"both {i}", "output": OPTIONS[i % 3]} for i in range(6)]
        assert (await caller.post("calibrate", {"examples": rows})).json()["warnings"] == []

    server.run(scenario)


def test_examples_add_up_are_counted_once_and_never_come_from_the_support(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        first = await caller.calibrate([*texts("a", 5), "a 0", "good"])
        assert first["n"] == 5
        assert first["warnings"] == [
            "1 examples are left out: the adapter was made from them",
            "1 examples are left out: their inputs are counted already, with the label that came first",
        ]
        second = await caller.calibrate([*texts("a", 5), "b"])
        assert (second["n"], second["version"]) == (6, 2)
        assert second["id"] != first["id"]
        refusal = error(await caller.post("calibrate", {"examples": [{"input": "b", "output": "no"}]}))
        assert (refusal["code"], refusal["param"]) == ("invalid_request", "examples")
        for remedy in (f"GET /v1/adapters/{caller.id}/calibration,", "`replace`: true"):
            assert remedy in refusal["message"]
        taught = error(await caller.post("calibrate", {"examples": [{"input": "good", "output": "yes"}]}))
        assert "the adapter was made from all of them" in taught["message"]
        third = await caller.calibrate(texts("a", 5), replace=True)
        assert (third["n"], third["version"]) == (5, 3)
        assert third["id"] == first["id"], "of the content"

    server.run(scenario)


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"samples": 8}, "samples"), ({"seed": 1}, "seed"), ({"samples": "auto"}, "samples")],
)
def test_what_decides_confidences_must_be_as_calibrated(
    server: Server, fields: dict[str, Any], param: str
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        await caller.calibrate(texts("a", 20))
        refusal = error(await caller.ask(["x"], gate=TARGET, **fields))
        assert (refusal["code"], refusal["param"]) == ("calibration_mismatch", param)
        refusal = error(
            await caller.post("calibrate", {"examples": [{"input": "b", "output": "no"}], **fields})
        )
        assert (refusal["code"], refusal["param"]) == ("calibration_mismatch", param)
        await caller.calibrate(texts("a", 20), replace=True, **fields)
        assert (await caller.ask(["x"], gate={"target_coverage": 0.5}, **fields)).status_code == 200

    server.run(scenario)


def test_another_kind_of_confidence_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        calibration = await caller.calibrate(texts("a", 20))
        assert calibration["confidence_kind"] == "predictive"
        other = Confidence(0.5, "calibrated")
        monkeypatch.setattr("service.engine.answering.confidence_of", lambda *_: other)
        refusal = error(await caller.ask(["x"], gate=TARGET))
        assert (refusal["code"], refusal["param"]) == ("calibration_mismatch", "confidence_kind")

    server.run(scenario)


def test_a_calibration_goes_with_its_adapter_and_by_itself(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        await caller.calibrate(texts("a", 20))
        gone = await client.delete(f"/v1/adapters/{caller.id}/calibration")
        assert gone.json() == {"adapter_id": caller.id, "object": "calibration", "deleted": True}
        assert (
            error(await client.delete(f"/v1/adapters/{caller.id}/calibration"))["code"]
            == "calibration_missing"
        )
        await caller.calibrate(texts("a", 20))
        await client.delete(f"/v1/adapters/{caller.id}")
        assert error(await caller.calibration(), 404)["code"] == "unknown_adapter"
        again = await Caller.of(client)
        assert again.id == caller.id
        assert error(await again.calibration())["code"] == "calibration_missing"

    server.run(scenario)


def test_free_text_is_gated_but_has_no_sets(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        body = {"support": [{"input": "2+2", "output": "four"}]}
        caller = Caller(client, (await client.post("/v1/adapters", json=body)).json()["id"])
        rows = [{"input": text, "output": "some text "} for text in texts("a", 20)]
        calibration = (await caller.post("calibrate", {"examples": rows})).json()
        assert (calibration["accuracy"], calibration["sets"], calibration["max_new_tokens"]) == (1, [], 32)
        assert (await caller.ask(["x"], gate=TARGET)).status_code == 200
        refusal = error(await caller.ask(["x"], gate=TARGET, max_new_tokens=8))
        assert (refusal["code"], refusal["param"]) == ("calibration_mismatch", "max_new_tokens")
        refusal = error(await caller.ask(["x"], set={"alpha": 0.1}))
        assert (refusal["code"], refusal["param"]) == ("invalid_request", "set")

    server.run(scenario)


def test_nothing_of_a_callers_text_is_kept(server: Server, tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        await caller.calibrate(texts("a private matter", 20))
        await caller.label(await caller.predictions(["a private question"], log=True), right=True)

    server.run(scenario)
    (journal,) = (tmp_path / "calibrations").glob("*/journal.jsonl")
    assert "private" not in journal.read_text()
    assert len(journal.read_text().splitlines()) == 3
