"""Labels and inputs that come later renew a certificate, or revoke it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.service.conftest import Server
from tests.service.gating.calling import TARGET, Caller, Predictions, error, texts


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
