"""Adapters with their own temperature: over HTTP, and the same as in the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from abmll.assurance.folds import make_folds
from abmll.cross_fitting import adapt_at_own_temperature
from abmll.text.questions import Case, Question, examples_of
from abmll.text.tasks import Example
from service.cli.main import app
from service.engine.requests import AdaptRequest, DecideRequest
from service.errors import ServiceError
from tests.service.conftest import Server
from tests.service.engine.test_diagnose import RealWorker, tiny_worker
from tests.service.fakes import FakeWorker

OPTIONS = ["yes", "no"]
SUPPORT = [{"input": f"text {i}", "output": OPTIONS[i % 2]} for i in range(6)]
PLAIN: dict[str, Any] = {"support": SUPPORT, "options": OPTIONS}
BODY = {**PLAIN, "adapt": {"calibration_folds": 3}}


def test_it_is_another_adapter_with_a_temperature_of_its_own(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        plain = (await client.post("/v1/adapters", json=PLAIN)).json()
        own = (await client.post("/v1/adapters", json=BODY)).json()
        assert own["id"] != plain["id"]
        assert len(server.worker.adapted) == 1 + 1 + 3
        assert [len(job.examples) for job in server.worker.adapted[1:]].count(4) == 3
        assert "held_out" not in plain
        assert own["held_out"]["n"] == 6
        factor = own["held_out"]["temperature_factor"]
        assert own["temperature"] == pytest.approx(plain["temperature"] * factor)
        assert own["timings"]["adapt_seconds"] > 0
        again = (await client.post("/v1/adapters", json=BODY)).json()
        assert (again["id"], again["cache"], again["held_out"]) == (own["id"], "hit", own["held_out"])
        assert len(server.worker.adapted) == 1 + 1 + 3

    server.run(scenario)


def test_it_survives_a_restart_and_its_confidence_is_calibrated(tmp_path: Path) -> None:
    found: dict[str, Any] = {}

    async def create(client: httpx.AsyncClient) -> None:
        found["made"] = (await client.post("/v1/adapters", json=BODY)).json()

    async def use(client: httpx.AsyncClient) -> None:
        name = found["made"]["id"]
        shown = (await client.get(f"/v1/adapters/{name}")).json()
        assert (shown["temperature"], shown["held_out"]) == (
            found["made"]["temperature"], found["made"]["held_out"],
        )  # fmt: skip
        asked = {"adapter_id": name, "inputs": ["a", "b"]}
        answer = (await client.post("/v1/predict", json=asked)).json()
        assert answer["calibrator"] == "held_out"
        for prediction in answer["predictions"]:
            assert prediction["confidence_kind"] == "calibrated"
            assert prediction["confidence"] == max(o["probability"] for o in prediction["distribution"])
        raw = (await client.post("/v1/predict", json={**asked, "confidence": "predictive"})).json()
        assert {p["confidence_kind"] for p in raw["predictions"]} == {"predictive"}
        insisted = await client.post("/v1/predict", json={**asked, "confidence": "calibrated", "samples": 0})
        assert insisted.status_code == 200

    Server(tmp_path).run(create)
    Server(tmp_path).run(use)


def test_in_one_request_with_the_inputs(server: Server) -> None:
    body = {**BODY, "inputs": ["a"], "confidence": "calibrated"}
    answer = server.post("/v1/predict", body).json()
    assert (answer["calibrator"], answer["cache"]) == ("held_out", "miss")
    assert len(server.worker.adapted) == 1 + 3


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({**PLAIN, "adapt": {"calibration_folds": 1}}, "invalid_request"),
        ({**PLAIN, "adapt": {"calibration_folds": 33}}, "limit_exceeded"),
        (
            {"support": [{"input": "a", "output": "some text"}], "adapt": {"calibration_folds": 2}},
            "invalid_request",
        ),
        ({**PLAIN, "support": SUPPORT[:1], "adapt": {"calibration_folds": 2}}, "invalid_request"),
    ],
)
def test_what_cannot_be_held_out_is_refused_before_any_work(
    server: Server, body: dict[str, Any], code: str
) -> None:
    answer = server.post("/v1/adapters", body)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, "adapt.calibration_folds")
    assert server.worker.adapted == []


def test_a_failing_fold_fails_the_request_and_nothing_is_kept(tmp_path: Path) -> None:
    class Failing(FakeWorker):
        def _predict_all(self, job: Any) -> Any:
            raise RuntimeError("a fold")

    server = Server(tmp_path, Failing())

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.post("/v1/adapters", json=BODY)).status_code == 500
        assert (await client.get("/v1/adapters")).json()["data"] == []

    server.run(scenario)


@pytest.mark.parametrize("own_options", [False, True])
def test_with_the_real_model_it_is_the_librarys(tmp_path: Path, own_options: bool) -> None:
    worker = RealWorker()
    worker.real, model = tiny_worker()
    server = Server(tmp_path, worker)
    support = tuple(
        Example(f"the film {i}", OPTIONS[i % 2], (*OPTIONS, *([f"film {i}"] if own_options else [])))
        for i in range(6)
    )
    found: dict[str, Any] = {}

    async def scenario(_: httpx.AsyncClient) -> None:
        asked = AdaptRequest(support, seed=5, calibration_folds=3)
        found["it"] = (await server.engine.create_adapter(asked)).adapter.manifest

    server.run(scenario)
    adaptation, held_out = adapt_at_own_temperature(model, support, make_folds(support, 3), seed=5)
    assert found["it"].held_out.temperature_factor == pytest.approx(held_out.temperature_factor, rel=0.06)
    assert found["it"].held_out.correct == held_out.correct
    assert found["it"].config.temperature.base == pytest.approx(
        adaptation.posterior.config.temperature.base, rel=0.06
    )


TOPIC = Question("topic", "choice", "What is it about?", ("film", "story"))
GOOD = Question("good", "predicate", "Is it good?", ("yes", "no"))
CASES = [
    Case(f"the film {i}", {"topic": TOPIC.options[i % 2], "good": (None, "yes", "no")[i % 3]})
    for i in range(6)
]


def test_an_adapter_of_several_questions_has_a_temperature_for_each(tmp_path: Path) -> None:
    worker = RealWorker()
    worker.real, model = tiny_worker()
    server = Server(tmp_path, worker)
    support = tuple(examples_of([TOPIC, GOOD], CASES))
    new = Question("new", "predicate", "Is it new?", ("yes", "no"))
    asked = DecideRequest((TOPIC, GOOD, new), ("hello",), AdaptRequest(support, seed=5, calibration_folds=3))

    async def scenario(client: httpx.AsyncClient) -> None:
        decided = await server.engine.decide(asked)
        assert [row.confidence.kind for row in decided.rows[0]] == ["calibrated", "calibrated", "predictive"]
        shown = (await client.get(f"/v1/adapters/{decided.adapter_id}")).json()
        _, held_out = adapt_at_own_temperature(model, support, make_folds(support, 3), seed=5)
        assert held_out.n == 10
        assert [row["n"] for row in shown["held_out"]["questions"]] == [6, 4]
        for found, expected in zip(shown["held_out"]["questions"], held_out.by_question, strict=True):
            assert found["instruction"] == expected.instruction
            assert found["temperature_factor"] == pytest.approx(expected.temperature_factor, rel=0.06)
        manifest = (await server.engine.adapter(decided.adapter_id or "")).manifest
        common = manifest.config.temperature.base / shown["held_out"]["temperature_factor"]
        temperatures = [temperature for _, temperature in manifest.config.temperature.by_question]
        factors = [row["temperature_factor"] for row in shown["held_out"]["questions"]]
        assert temperatures == pytest.approx([common * factor for factor in factors])

    server.run(scenario)


def test_cases_that_no_input_tells_choose_no_temperature(tmp_path: Path) -> None:
    cases = [Case(str(i), {"topic": None, "good": None}) for i in range(6)]
    support = tuple(examples_of([TOPIC, GOOD], cases))
    server = Server(tmp_path)

    async def scenario(_: httpx.AsyncClient) -> None:
        with pytest.raises(ServiceError, match="too small to hold anything out") as refused:
            await server.engine.create_adapter(AdaptRequest(support, calibration_folds=3))
        assert refused.value.param == "adapt.calibration_folds"
        assert server.worker.adapted == []

    server.run(scenario)


def test_the_command_takes_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.executors.loading.load_worker", lambda settings: FakeWorker())
    rows = tmp_path / "support.jsonl"
    rows.write_text("".join(json.dumps({**row, "options": OPTIONS}) + "\n" for row in SUPPORT))
    arguments = [
        "adapt",
        str(rows),
        "--calibration-folds",
        "3",
        "--data-dir",
        str(tmp_path / "data"),
        "--json",
    ]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    assert json.loads(run.output)["held_out"]["n"] == 6
