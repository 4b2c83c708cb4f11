"""Calibrated gates through HTTP, on the fake model.

Inputs determine its answers, so tests choose which of them are right.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from abmll.assurance.certificates import Certificate, certify_looks, threshold_for_coverage
from abmll.assurance.conformal import conformal_quantile
from service.api.native.requests import predict_request
from service.errors import CannotCertifyError
from service.gating.confidence import Confidence
from service.schemas import PredictRequest
from tests.service.conftest import Server

SUPPORT = [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}]
OPTIONS = ["yes", "no", "perhaps"]
TARGET = {"target_error": 0.2, "delta": 0.1}
Predictions = list[dict[str, Any]]


class Caller:
    """One adapter on a running server."""

    def __init__(self, client: httpx.AsyncClient, adapter_id: str) -> None:
        self.client, self.id = client, adapter_id

    @classmethod
    async def of(cls, client: httpx.AsyncClient, options: Sequence[str] = OPTIONS) -> Caller:
        body = {"support": SUPPORT, "options": options}
        return cls(client, (await client.post("/v1/adapters", json=body)).json()["id"])

    async def post(self, what: str, body: Any) -> httpx.Response:
        return await self.client.post(f"/v1/adapters/{self.id}/{what}", json=body)

    async def ask(self, inputs: Sequence[str], **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/predict", json={"adapter_id": self.id, "inputs": inputs, **fields})

    async def predictions(self, inputs: Sequence[str], **fields: Any) -> Predictions:
        answer = await self.ask(inputs, **fields)
        assert answer.status_code == 200, answer.text
        found: Predictions = answer.json()["predictions"]
        return found

    async def examples(self, inputs: Sequence[str], wrong: Sequence[int] = ()) -> list[dict[str, str]]:
        """Return examples labelled so that the model is right except at `wrong`."""
        answers = [p["answer"] for p in await self.predictions(inputs)]
        return [
            {"input": text, "output": other(answer) if i in wrong else answer}
            for i, (text, answer) in enumerate(zip(inputs, answers, strict=True))
        ]

    async def calibrate(
        self, inputs: Sequence[str], wrong: Sequence[int] = (), **fields: Any
    ) -> dict[str, Any]:
        answer = await self.post(
            "calibrate", {"examples": await self.examples(inputs, wrong), "options": OPTIONS, **fields}
        )
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def calibration(self) -> httpx.Response:
        return await self.client.get(f"/v1/adapters/{self.id}/calibration")

    async def label(self, served: Predictions, *, right: bool) -> httpx.Response:
        rows = [
            {"prediction_id": p["prediction_id"], "label": p["answer"] if right else other(p["answer"])}
            for p in served
        ]
        return await self.post("feedback", {"feedback": rows})


def other(answer: str) -> str:
    return next(option for option in OPTIONS if option != answer)


def texts(name: str, n: int) -> list[str]:
    return [f"{name} {i}" for i in range(n)]


def error(response: httpx.Response, status: int = 422) -> dict[str, Any]:
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()["error"]
    return found


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


def test_asked_for_labels_count_for_the_gate_and_others_do_not(tmp_path: Path) -> None:
    server = Server(tmp_path, feedback_share=0.5)

    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        before = await caller.calibrate(texts("a", 20))
        served = await caller.predictions(texts("new", 60), gate=TARGET)
        asked = [p for p in served if p["explored"]]
        assert 15 < len(asked) < 45
        again = await caller.predictions(texts("new", 60), gate=TARGET)
        assert again == served, "an input asked twice is one prediction"
        outcome = (await caller.label(served, right=True)).json()
        assert (outcome["stored"], outcome["asked"], outcome["known"]) == (60, len(asked), 0)
        now = outcome["calibration"]
        assert (now["n"], now["feedback"], now["version"]) == (20 + len(asked), len(asked), 2)
        assert now["id"] != before["id"]
        assert now["monitoring"]["logged"] == now["monitoring"]["labelled"] == 60
        outcome = (await caller.label(served, right=False)).json()
        assert (outcome["stored"], outcome["known"]) == (0, 60), "the first label counts"
        assert outcome["contradicted"] == [p["prediction_id"] for p in served]
        assert outcome["calibration"]["n"] == now["n"]
        in_calibration = await caller.predictions(texts("a", 20), gate=TARGET)
        assert not any(
            p["explored"] for p in [*in_calibration, *await caller.predictions(["good"], log=True)]
        )
        text = (await client.get("/metrics")).text
        assert f'abmll_feedback_labels_total{{asked="yes"}} {float(len(asked))}' in text
        assert "abmll_calibration_examples_total 20.0" in text
        assert 'abmll_calibrations{state="active"} 1.0' in text

    server.run(scenario)


def test_feedback_makes_certain_what_the_examples_alone_could_not(tmp_path: Path) -> None:
    server = Server(tmp_path, feedback_share=1.0)

    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        await caller.calibrate(texts("a", 10))
        assert error(await caller.ask(["x"], gate=TARGET))["about_n_more_labels"] == 5
        await caller.label(await caller.predictions(texts("new", 5), log=True), right=True)
        assert (await caller.ask(["x"], gate=TARGET)).status_code == 200

    server.run(scenario)


def test_wrong_answers_revoke_the_certificate_until_a_new_calibration_and_a_restart_forgets_nothing(
    tmp_path: Path,
) -> None:
    server = Server(tmp_path, feedback_share=1.0)
    seen: dict[str, Any] = {}

    async def drift(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        await caller.calibrate(texts("a", 20))
        for i in range(8):
            served = await caller.predictions(texts(f"new {i}", 2), gate=TARGET)
            assert {p["decision"] for p in served} == {"answer"}
            outcome = (await caller.label(served, right=False)).json()
            if outcome["calibration"]["state"] == "revoked":
                break
        assert 1 < i < 7
        seen.update(outcome["calibration"])
        refusal = error(await caller.ask(["x"], gate=TARGET))
        assert refusal["code"] == "certificate_revoked"
        assert f"{2 * i + 2} of {2 * i + 2} labelled answers" in refusal["message"]
        text = (await client.get("/metrics")).text
        assert 'abmll_drift_alarms_total{watches="risk"} 1.0' in text
        assert 'abmll_calibrations{state="revoked"} 1.0' in text

    server.run(drift)

    async def restarted(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        assert (await caller.calibration()).json() == seen
        for fields in ({"gate": TARGET}, {"gate": {"target_coverage": 0.5}}, {"set": {"alpha": 0.1}}):
            assert error(await caller.ask(["x"], **fields))["code"] == "certificate_revoked"
        assert (await caller.ask(["x"], log=True)).status_code == 200
        row = [{"input": "b", "output": "no"}]
        assert error(await caller.post("calibrate", {"examples": row}))["code"] == "certificate_revoked"
        fresh = await caller.calibrate(texts("b", 20), replace=True)
        assert (fresh["state"], fresh["n"]) == ("active", 20)
        assert (await caller.ask(["x"], gate=TARGET)).status_code == 200

    Server(tmp_path, feedback_share=1.0).run(restarted)


def test_inputs_of_another_kind_revoke_without_labels(tmp_path: Path) -> None:
    server = Server(tmp_path)

    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        inputs = texts("a", 200)
        known = {p["input_text"]: p for p in with_text(inputs, await caller.predictions(inputs))}
        sure = sorted(inputs, key=lambda text: -known[text]["confidence"])
        await caller.calibrate(sure[:40])  # with higher confidences than those that follow
        for start in range(0, 160, 40):
            answer = await caller.ask(sure[40 + start : 80 + start], gate=TARGET)
            if answer.status_code != 200:
                break
        refusal = error(answer)
        assert refusal["code"] == "certificate_revoked"
        assert "confidences" in refusal["message"]
        assert 'abmll_drift_alarms_total{watches="domain"} 1.0' in (await client.get("/metrics")).text

    server.run(scenario)


def with_text(inputs: Sequence[str], predictions: Predictions) -> Predictions:
    return [{**p, "input_text": text} for text, p in zip(inputs, predictions, strict=True)]


def test_old_predictions_without_a_label_are_forgotten_and_the_rest_is_kept(tmp_path: Path) -> None:
    server = Server(tmp_path, feedback_share=1.0, max_logged=10)

    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        await caller.calibrate(texts("a", 20))
        first = await caller.predictions(texts("first", 5), gate=TARGET)
        await caller.label(first[:2], right=True)
        second = await caller.predictions(texts("second", 5), gate=TARGET)
        third = await caller.predictions(texts("third", 5), gate=TARGET)
        refusal = error(await caller.label(first[2:], right=True), 404)
        assert (refusal["code"], refusal["param"]) == ("unknown_prediction", "feedback[0].prediction_id")
        outcome = (await caller.label([*second, *third], right=True)).json()
        assert (outcome["stored"], outcome["calibration"]["n"]) == (10, 32)
        assert outcome["calibration"]["monitoring"]["logged"] == 15
        assert outcome["calibration"]["monitoring"]["labelled"] == 12

    server.run(scenario)

    async def restarted(client: httpx.AsyncClient) -> None:
        assert (await (await Caller.of(client)).calibration()).json()["n"] == 32

    Server(tmp_path, max_logged=10).run(restarted)


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


ROW = {"input": "x", "output": "yes"}
REFUSED_CALIBRATIONS = {
    "no examples": ({"examples": []}, "invalid_request", "examples"),
    "an output outside the options": (
        {"examples": [ROW, {"input": "y", "output": "maybe"}]}, "invalid_options", "examples[1].output",
    ),
    "an input beyond the context": (
        {"examples": [{"input": "y" * 300, "output": "yes"}]}, "prompt_too_long", "examples[0]",
    ),
    "too many at once": ({"examples": [{**ROW, "input": str(i)} for i in range(31)]}, "limit_exceeded", "examples"),
    "too many in all": ({"examples": [{**ROW, "input": str(i)} for i in range(26)]}, "limit_exceeded", "examples"),
    "an unknown field": ({"examples": [ROW], "target": 1}, "invalid_request", "target"),
    "an example without output": ({"examples": [{"input": "x"}]}, "invalid_request", "examples[0].output"),
    "too many samples": ({"examples": [ROW], "samples": 40}, "limit_exceeded", "samples"),
    "one option": ({"examples": [{**ROW, "options": ["yes"]}]}, "invalid_options", "examples[0]"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_CALIBRATIONS)
def test_bad_calibrations_are_refused_before_any_model_work(tmp_path: Path, name: str) -> None:
    body, code, param = REFUSED_CALIBRATIONS[name]
    server = Server(tmp_path, max_inputs=30, max_calibration=25, max_samples=32)

    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        refusal = error(await caller.post("calibrate", body))
        assert (refusal["code"], refusal["param"]) == (code, param)
        assert server.worker.predicted == []
        assert error(await caller.calibration())["code"] == "calibration_missing"

    server.run(scenario)


REFUSED_REQUESTS = {
    "a target and a raw threshold": ({"gate": {**TARGET, "min_confidence": 0.5}}, "gate"),
    "a target error and a coverage": ({"gate": {**TARGET, "target_coverage": 0.5}}, "gate"),
    "delta alone": ({"gate": {"delta": 0.1}}, "gate"),
    "a target of zero": ({"gate": {"target_error": 0}}, "gate.target_error"),
    "a certain delta": ({"gate": {"target_error": 0.1, "delta": 0}}, "gate.delta"),
    "a full coverage": ({"gate": {"target_coverage": 1}}, "gate.target_coverage"),
    "an alpha of one": ({"set": {"alpha": 1}}, "set.alpha"),
    "a set without alpha": ({"set": {}}, "set.alpha"),
    "log as text": ({"log": "yes"}, "log"),
}


@pytest.mark.parametrize("name", REFUSED_REQUESTS)
def test_bad_gates_are_refused(server: Server, name: str) -> None:
    fields, param = REFUSED_REQUESTS[name]
    refusal = error(server.post("/v1/predict", {"adapter_id": "adp_00000000", "inputs": ["x"], **fields}))
    assert (refusal["code"], refusal["param"]) == ("invalid_request", param)


def test_a_calibrated_gate_needs_an_adapters_id(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        body = {"support": SUPPORT, "options": OPTIONS, "inputs": ["x"], "gate": TARGET}
        assert "adapter_id" in error(await client.post("/v1/predict", json=body))["message"]
        unknown = {"adapter_id": "adp_00000000", "inputs": ["x"], "gate": TARGET}
        refused = await client.post("/v1/predict", json=unknown)
        assert error(refused, 404)["code"] == "unknown_adapter"

    server.run(scenario)


def test_a_gate_with_a_target_always_needs_the_calibration() -> None:
    for body in (
        {"gate": {"target_error": 0.1}},
        {"gate": {"target_coverage": 0.5}},
        {"set": {"alpha": 0.1}},
    ):
        request = predict_request(PredictRequest.model_validate({"adapter_id": "a", "inputs": ["x"], **body}))
        assert request.gate.needs_calibration
        assert request.gate.promises
    logged = PredictRequest(adapter_id="a", inputs=["x"], log=True)
    assert predict_request(logged).gate.needs_calibration
    assert not predict_request(PredictRequest(adapter_id="a", inputs=["x"])).gate.needs_calibration


@pytest.mark.parametrize(
    ("rows", "status", "code", "param"),
    [
        ([], 422, "invalid_request", "feedback"),
        (
            [{"prediction_id": "prd_0", "label": "yes"}],
            404,
            "unknown_prediction",
            "feedback[0].prediction_id",
        ),
        ([{"prediction_id": "prd_0"}], 422, "invalid_request", "feedback[0].label"),
        ([{"prediction_id": "prd_0", "label": "yes"}] * 300, 422, "limit_exceeded", "feedback"),
    ],
)
def test_bad_feedback_is_refused(
    server: Server, rows: list[dict[str, str]], status: int, code: str, param: str
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        assert (
            error(await caller.post("feedback", {"feedback": [{"prediction_id": "p", "label": "l"}]}))["code"]
            == "calibration_missing"
        )
        await caller.calibrate(texts("a", 20))
        refusal = error(await caller.post("feedback", {"feedback": rows}), status)
        assert (refusal["code"], refusal["param"]) == (code, param)

    server.run(scenario)


def test_a_label_that_is_no_option_is_refused_and_nothing_of_its_batch_is_stored(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        await caller.calibrate(texts("a", 20))
        served = await caller.predictions(texts("new", 2), log=True)
        rows = [
            {"prediction_id": served[0]["prediction_id"], "label": "yes"},
            {"prediction_id": served[1]["prediction_id"], "label": "maybe"},
        ]
        refusal = error(await caller.post("feedback", {"feedback": rows}))
        assert (refusal["code"], refusal["param"]) == ("invalid_options", "feedback[1].label")
        assert (await caller.calibration()).json()["monitoring"]["labelled"] == 0

    server.run(scenario)


def test_a_full_disk_acknowledges_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import model_store.adapters.journals

    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        await caller.calibrate(texts("a", 20))
        before = (await caller.calibration()).json()

        def full(_handle: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(model_store.adapters.journals.os, "fsync", full)
            assert error(await caller.ask(["x"], gate=TARGET), 500)["code"] == "store_failed"
            more = {"examples": [{"input": "b", "output": "yes"}]}
            assert error(await caller.post("calibrate", more), 500)["code"] == "store_failed"
        assert (await caller.calibration()).json() == before

    server.run(scenario)


def test_a_journal_of_another_version_is_left_alone_and_not_used(server: Server, tmp_path: Path) -> None:
    from model_store.adapters.gate_journals import GateJournals

    async def calibrated(client: httpx.AsyncClient) -> None:
        await (await Caller.of(client)).calibrate(texts("a", 20))

    server.run(calibrated)
    (folder,) = (tmp_path / "calibrations").glob("adp_*")
    store = GateJournals(tmp_path / "calibrations")
    (record,) = store.read(folder.name) or []
    store.begin(folder.name, [{**json.loads(json.dumps(record)), "format_version": 99}])

    async def restarted(client: httpx.AsyncClient) -> None:
        assert error(await (await Caller.of(client)).calibration())["code"] == "calibration_missing"

    Server(tmp_path).run(restarted)
    assert folder.exists()


def test_a_journal_that_means_nothing_counts_as_none_and_is_moved_aside(
    server: Server, tmp_path: Path
) -> None:
    from model_store.adapters.gate_journals import GateJournals

    async def made(client: httpx.AsyncClient) -> None:
        await Caller.of(client)

    server.run(made)
    (adapter,) = (tmp_path / "adapters").glob("adp_*")
    GateJournals(tmp_path / "calibrations").begin(adapter.name, [{"kind": "snapshot", "format_version": 1}])

    async def restarted(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        assert error(await caller.calibration())["code"] == "calibration_missing"
        await caller.calibrate(texts("a", 20))
        assert (await caller.calibration()).json()["n"] == 20

    Server(tmp_path).run(restarted)
    assert len(list((tmp_path / "calibrations" / ".damaged").iterdir())) == 1
