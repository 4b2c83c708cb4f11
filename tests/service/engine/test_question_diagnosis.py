"""Diagnoses of adapters of several questions: over HTTP, stored, and the library's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from abmll.assurance.estimates import AnswerableEstimate, Estimate
from abmll.assurance.folds import held_out_answers, make_folds
from abmll.cross_fitting import cross_predict
from abmll.text.demonstrations import fitting
from abmll.text.questions import Case, Question, examples_of
from service.engine.requests import AdaptRequest, DiagnoseRequest
from tests.service.conftest import Server
from tests.service.engine.test_diagnose import RealWorker, tiny_worker

TOPIC = Question("topic", "choice", "What is it about?", ("film", "story", "money"))
GOOD = Question("good", "predicate", "Is it good?", ("yes", "no"))
CASES = [
    Case(f"the film {i}", {"topic": TOPIC.options[i % 3], "good": (None, "yes", "no")[i % 3]})
    for i in range(6)
]
SUPPORT = tuple(examples_of([TOPIC, GOOD], CASES))


def test_each_question_is_reported_with_one_verdict_for_all_and_it_is_stored(tmp_path: Path) -> None:
    shown: list[dict[str, Any]] = []

    async def diagnose(client: httpx.AsyncClient) -> None:
        name = (await server.engine.create_adapter(AdaptRequest(SUPPORT))).adapter.manifest.id
        made = (await client.post(f"/v1/adapters/{name}/diagnose", json={"folds": 3})).json()
        stored = (await client.get(f"/v1/adapters/{name}")).json()["diagnosis"]
        assert {**made, **stored} == made
        shown.append(stored)

    server = Server(tmp_path)
    server.run(diagnose)
    server = Server(tmp_path)
    server.run(diagnose)
    found, again = shown
    assert found == again
    assert found["held_out"]["n"] == 10, "six topics, and four answers that the input tells"
    topic, good = found["questions"]
    assert (topic["instruction"], topic["held_out"]["n"]) == ("What is it about?", 6)
    assert (good["instruction"], good["held_out"]["n"]) == ("Is it good?", 4)
    assert (good["answerable"]["n"], good["answerable"]["untellable"]) == (6, 2)
    assert "answerable" not in topic
    assert "levels" not in topic
    assert "name" not in topic
    assert found["verdict"] in ("healthy", "weak", "unfit")
    for question in found["questions"]:
        assert all(
            SUPPORT[row["index"]].instruction == question["instruction"] for row in question["suspects"]
        )


def test_without_instructions_the_wire_is_what_it_was(server: Server) -> None:
    rows = [{"input": f"text {i}", "output": ["yes", "no"][i % 2]} for i in range(6)]

    async def scenario(client: httpx.AsyncClient) -> None:
        body = {"support": rows, "options": ["yes", "no"]}
        name = (await client.post("/v1/adapters", json=body)).json()["id"]
        made = (await client.post(f"/v1/adapters/{name}/diagnose", json={"folds": 3})).json()
        assert "questions" not in made
        assert list(made)[-5:] == ["level", "adapter_id", "cache", "timings", "request_id"]

    server.run(scenario)


def test_with_the_real_model_the_answers_are_the_librarys(tmp_path: Path) -> None:
    worker = RealWorker()
    worker.real, model = tiny_worker()
    server = Server(tmp_path, worker)
    folds = make_folds(SUPPORT, 3)
    indices = [i for fold in folds for i in fold.held_out]
    plain = [SUPPORT[i].query for i in indices]
    prompts = [
        fitting(
            fold.demonstrations(SUPPORT, SUPPORT[i].query),
            SUPPORT[i].query,
            model.encoder,
            model.encoder.template,
            256,
        )
        for fold in folds
        for i in fold.held_out
    ]
    own = cross_predict(model, SUPPORT, folds, seed=5, samples=0)
    prior = held_out_answers(SUPPORT, indices, model.predict(None, plain, samples=0))
    in_context = held_out_answers(SUPPORT, indices, model.predict(None, prompts, samples=0))

    async def scenario(_: httpx.AsyncClient) -> None:
        name = (await server.engine.create_adapter(AdaptRequest(SUPPORT, seed=5))).adapter.manifest.id
        found = (await server.engine.diagnose(DiagnoseRequest(name, folds=3, samples=0))).diagnosis
        for question, start in zip(found.questions, (0, 1), strict=True):
            assert question.evidence is not None
            for part, rows in (("held_out", own), ("prior", prior), ("in_context", in_context)):
                expected = Estimate.of([row for row in rows if row.index % 2 == start and row.tellable])
                one = getattr(question.evidence, part)
                assert one.nll == pytest.approx(expected.nll, rel=1e-2, abs=5e-3), part
                assert (one.n, one.correct) == (expected.n, expected.correct)
        expected = AnswerableEstimate.of([row for row in own if row.index % 2 == 1])
        assert expected is not None
        answerable = found.questions[1].answerable
        assert answerable is not None
        assert answerable.brier == pytest.approx(expected.brier, abs=1e-2)

    server.run(scenario)
