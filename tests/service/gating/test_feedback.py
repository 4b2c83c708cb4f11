"""Labels of predictions: the first stays, and the answer says so."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.service.conftest import Server
from tests.service.gating.calling import TARGET, Caller, other, texts


def test_a_label_that_contradicts_the_first_changes_nothing_and_is_named(tmp_path: Path) -> None:
    server = Server(tmp_path, feedback_share=1.0)

    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        await caller.calibrate(texts("a", 60))
        first, second, third = await caller.predictions(texts("new", 3), gate=TARGET)
        rows = [
            {"prediction_id": first["prediction_id"], "label": first["answer"]},
            {"prediction_id": second["prediction_id"], "label": other(second["answer"])},
        ]
        before = (await caller.post("feedback", {"feedback": rows})).json()
        assert before["contradicted"] == before["calibration"]["warnings"] == []
        again = [
            rows[0],  # the same once more
            {"prediction_id": second["prediction_id"], "label": second["answer"]},  # corrected
            {"prediction_id": third["prediction_id"], "label": third["answer"]},
            {"prediction_id": third["prediction_id"], "label": other(third["answer"])},  # in one request
        ]
        after = (await caller.post("feedback", {"feedback": again})).json()
        assert (after["stored"], after["asked"], after["known"]) == (1, 1, 3)
        assert after["contradicted"] == [second["prediction_id"], third["prediction_id"]]
        assert after["calibration"]["warnings"] == [
            "the labels of 2 predictions contradict the first ones, which stay: "
            "if a first label was wrong, calibrate anew with replace"
        ]
        assert after["calibration"]["n"] == 63
        assert after["calibration"]["accuracy"] == 62 / 63, "the first label of the second: wrong"
        wealth = before["calibration"]["monitoring"]["risk_wealth"]
        assert after["calibration"]["monitoring"]["risk_wealth"] < wealth, "one right answer was added"
        assert (await caller.calibration()).json()["warnings"] == []

    server.run(scenario)
    restarted = Server(tmp_path, feedback_share=1.0)
    (adapter_id,) = (path.name for path in (tmp_path / "calibrations").iterdir())

    async def reread(client: httpx.AsyncClient) -> None:
        found = (await client.get(f"/v1/adapters/{adapter_id}/calibration")).json()
        assert (found["n"], found["accuracy"]) == (63, 62 / 63)

    restarted.run(reread)


def test_labels_that_a_full_calibration_cannot_take_are_told(tmp_path: Path) -> None:
    server = Server(tmp_path, feedback_share=1.0, max_calibration=61)

    async def scenario(client: httpx.AsyncClient) -> None:
        caller = await Caller.of(client)
        await caller.calibrate(texts("a", 60))
        served = await caller.predictions(texts("new", 3), gate=TARGET)
        outcome = (await caller.label(served, right=True)).json()
        assert (outcome["stored"], outcome["asked"], outcome["calibration"]["n"]) == (3, 3, 61)
        assert outcome["calibration"]["warnings"] == [
            "2 labels are stored and do not count: the calibration is full; "
            "the limit is 61 (setting max_calibration)"
        ]

    server.run(scenario)
