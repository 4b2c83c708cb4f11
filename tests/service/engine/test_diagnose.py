"""A diagnosis over HTTP: equal to one by hand, stored with its adapter, made once, and refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from typer.testing import CliRunner

from abmll.adaptation.settings import AdaptSettings
from abmll.assurance.estimates import Estimate
from abmll.assurance.folds import held_out_answers, make_folds
from abmll.cross_fitting import cross_predict
from abmll.memory_plan import measure_costs
from abmll.model import FewShotModel
from abmll.posterior.movement import movement
from abmll.posterior.posteriors import GlobalPosterior
from abmll.text.demonstrations import fitting
from abmll.text.tasks import Example
from model_store.pretrained.identity import BaseIdentity
from model_store.tensors import posterior_digest
from service.cli.main import app
from service.engine.requests import AdaptOverrides, AdaptRequest, DiagnoseRequest
from service.executors.contract import ServedModel
from service.executors.worker import ModelWorker
from tests.service.conftest import Server, pass_time, until
from tests.service.fakes import FakeWorker
from tests.tiny import make_config, tiny_model, tiny_tokenizer

OPTIONS = ["yes", "no"]
SUPPORT = [{"input": f"text {i}", "output": OPTIONS[i % 2]} for i in range(6)]
BODY: dict[str, Any] = {"support": SUPPORT, "options": OPTIONS, "seed": 7, "adapt": {"steps": 3}}


async def create(client: httpx.AsyncClient, body: dict[str, Any] = BODY) -> str:
    return str((await client.post("/v1/adapters", json=body)).json()["id"])


def test_held_out_answers_are_those_of_adapters_made_without_them(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        name = await create(client)
        found = (await client.post(f"/v1/adapters/{name}/diagnose", json={"folds": 3, "samples": 4})).json()
        correct = 0
        for fold in make_folds([Example(r["input"], r["output"], tuple(OPTIONS)) for r in SUPPORT], 3):
            kept, asked = ([SUPPORT[i] for i in part] for part in (fold.kept, fold.held_out))
            other = await create(client, {**BODY, "support": kept})
            inputs = [row["input"] for row in asked]
            answers = await client.post(
                "/v1/predict", json={"adapter_id": other, "inputs": inputs, "samples": 4, "seed": 7}
            )
            predictions = answers.json()["predictions"]
            correct += sum(p["answer"] == row["output"] for p, row in zip(predictions, asked, strict=True))
        assert (found["held_out"]["correct"], found["held_out"]["n"], found["folds"]) == (correct, 6, 3)
        assert found["prior"]["n"] == found["in_context"]["n"] == 6
        assert (found["adapter_id"], found["cache"], found["samples"]) == (name, "miss", 4)
        assert found["verdict"] in {"healthy", "weak", "unfit"}
        assert found["reasons"]

    server.run(scenario)


def test_without_a_body_each_example_is_left_out_and_the_result_is_kept(tmp_path: Path) -> None:
    answers, shown = [], []

    async def ask(client: httpx.AsyncClient) -> None:
        name = await create(client)
        answers.append(await client.post(f"/v1/adapters/{name}/diagnose"))
        shown.append((await client.get(f"/v1/adapters/{name}")).json()["diagnosis"])

    first = Server(tmp_path)
    first.run(ask)
    assert len(first.worker.adapted) == 1 + 6 + 1  # the adapter, the folds, the prior
    second = Server(tmp_path)
    second.run(ask)
    assert second.worker.adapted == []
    assert [answer.status_code for answer in answers] == [200, 200]
    one, other = (answer.json() for answer in answers)
    assert (one["cache"], other["cache"]) == ("miss", "hit")
    assert (one["folds"], one["samples"], one["held_out"]["n"]) == (6, 8, 6)
    same = set(one) - {"cache", "timings", "request_id", "adapter_id"}
    assert {key: one[key] for key in same} == {key: other[key] for key in same} == shown[0] == shown[1]


def test_other_folds_take_the_place_of_the_kept_ones(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        path = f"/v1/adapters/{await create(client)}"
        for folds in (2, 3, 3):
            asked = await client.post(f"{path}/diagnose", json={"folds": folds})
            assert (await client.get(path)).json()["diagnosis"]["folds"] == folds
        assert asked.json()["cache"] == "hit"
        assert "diagnosis" not in (await client.get("/v1/adapters")).json()["data"][0]

    server.run(scenario)


def test_the_folds_are_jobs_side_by_side_and_equal_requests_join(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        name = await create(client)
        server.worker.adapt_gate.clear()
        asking = [asyncio.create_task(client.post(f"/v1/adapters/{name}/diagnose")) for _ in range(2)]
        await until(lambda: server.engine.workers()[0].jobs == 6 + 1)
        server.worker.adapt_gate.set()
        answers = [(await task).json() for task in asking]
        assert sorted(answer["cache"] for answer in answers) == ["joined", "miss"]
        assert len(server.worker.adapted) == 1 + 6 + 1
        assert b'abmll_diagnoses_total{verdict="' in server.metrics.render()

    server.run(scenario)


def test_who_leaves_takes_the_jobs_along(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        name = await create(client)
        server.worker.adapt_gate.clear()
        asking = asyncio.create_task(server.engine.diagnose(DiagnoseRequest(name)))
        await until(lambda: server.engine.workers()[0].jobs == 7)
        asking.cancel()
        await until(lambda: server.engine.workers()[0].jobs <= 1)  # one unit may run
        server.worker.adapt_gate.set()
        assert "diagnosis" not in (await client.get(f"/v1/adapters/{name}")).json()

    server.run(scenario)


def test_deleting_the_adapter_deletes_its_diagnosis(server: Server, tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        name = await create(client)
        await client.post(f"/v1/adapters/{name}/diagnose")
        assert (tmp_path / "adapters" / name / "diagnosis.json").exists()
        await client.delete(f"/v1/adapters/{name}")
        assert not (tmp_path / "adapters" / name).exists()
        assert (await client.post(f"/v1/adapters/{name}/diagnose")).json()["error"][
            "code"
        ] == "unknown_adapter"

    server.run(scenario)


def test_an_adapter_deleted_meanwhile_is_unknown(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        name = await create(client)
        server.worker.predict_gate.clear()
        asking = asyncio.create_task(client.post(f"/v1/adapters/{name}/diagnose"))
        await until(lambda: bool(server.worker.predicted))
        await client.delete(f"/v1/adapters/{name}")
        server.worker.predict_gate.set()
        assert (await asking).json()["error"]["code"] == "unknown_adapter"
        assert (await client.get(f"/v1/adapters/{name}")).status_code == 404

    server.run(scenario)


def test_past_the_deadline_504(tmp_path: Path) -> None:
    server = Server(tmp_path, cancel_grace_seconds=0)

    async def scenario(client: httpx.AsyncClient) -> None:
        name = await create(client)
        server.worker.adapt_gate.clear()
        server.set_deadline(20)
        asking = asyncio.create_task(client.post(f"/v1/adapters/{name}/diagnose"))
        await until(lambda: server.engine.workers()[0].jobs >= 1)
        pass_time(20)
        answer = (await asking).json()["error"]
        server.worker.adapt_gate.set()
        assert (answer["code"], answer["adapter_id"]) == ("deadline_exceeded", name)

    server.run(scenario)


@pytest.mark.parametrize(
    ("support", "body", "code", "param"),
    [
        ([{"input": "a", "output": "some text"}], {}, "undiagnosable", "adapter_id"),
        ([{"input": "a", "output": "yes", "options": OPTIONS}], {}, "undiagnosable", "adapter_id"),
        (SUPPORT, {"folds": 1}, "invalid_request", "folds"),
        (SUPPORT, {"folds": 33}, "limit_exceeded", "folds"),
        (SUPPORT, {"samples": 65}, "invalid_request", "samples"),
        (SUPPORT, {"samples": 20}, "limit_exceeded", "samples"),
        (SUPPORT, {"fold": 3}, "invalid_request", "fold"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused_before_any_work(
    tmp_path: Path, support: list[dict[str, Any]], body: dict[str, Any], code: str, param: str
) -> None:
    server = Server(tmp_path, max_samples=16)

    async def scenario(client: httpx.AsyncClient) -> None:
        options = {"options": OPTIONS} if support is SUPPORT else {}
        name = await create(client, {"support": support, **options})
        answer = await client.post(f"/v1/adapters/{name}/diagnose", json=body)
        assert answer.status_code == 422
        assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param)
        assert len(server.worker.adapted) == 1

    server.run(scenario)


def test_a_body_that_is_there_must_be_declared_as_json(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        path = f"/v1/adapters/{await create(client)}/diagnose"
        assert (await client.post(path, content=b"{}")).status_code == 415
        assert (await client.post(path, json=None)).status_code == 200

    server.run(scenario)


# ---- the real worker on a tiny model -------------------------------------------------------------


def tiny_worker() -> tuple[ModelWorker, FewShotModel]:
    torch.set_num_threads(1)
    config = make_config(rank=4, alpha=8.0, first_layer=1, offset=0.02)
    model = FewShotModel(tiny_model(), tiny_tokenizer(), config, defaults=AdaptSettings(2, 0.01, 4))
    noise = 0.05 * torch.randn(model.prior.values.shape, generator=torch.Generator().manual_seed(1))
    model.prior = GlobalPosterior(config, model.prior.sites, model.prior.values + noise)
    served = ServedModel(
        BaseIdentity("tiny", "sha256:0", "none"),
        "tiny",
        posterior_digest(model.prior),
        model.encoder.template.to_json(),
        model.defaults,
        model.encoder,
    )
    plan = measure_costs(model.backbone, model.prior).plan(10**9)
    return ModelWorker(model, served, plan, unit_tokens=4096), model


class RealWorker(FakeWorker):
    """A real worker, in the place of a fake one."""

    def load(self) -> Any:
        return self.real


def test_with_the_real_model_it_is_cross_prediction_the_prior_and_the_prompt(tmp_path: Path) -> None:
    worker = RealWorker()
    worker.real, model = tiny_worker()
    server = Server(tmp_path, worker)
    support = tuple(Example(f"the film {i}", OPTIONS[i % 2], tuple(OPTIONS)) for i in range(6))
    folds = make_folds(support, 3)
    found = {}

    async def scenario(_: httpx.AsyncClient) -> None:
        name = (await server.engine.create_adapter(AdaptRequest(support, seed=5))).adapter.manifest.id
        found["it"] = (await server.engine.diagnose(DiagnoseRequest(name, folds=3, samples=0))).diagnosis
        instant = AdaptRequest(support, AdaptOverrides("instant"), seed=5)
        unmoved = (await server.engine.create_adapter(instant)).adapter
        assert not unmoved.posterior.has_values
        request = DiagnoseRequest(unmoved.manifest.id, folds=3, samples=0)
        found["unmoved"] = (await server.engine.diagnose(request)).diagnosis

    server.run(scenario)
    assert found["unmoved"].movement.kl_nats == 0
    assert not found["unmoved"].movement.relative_mean_change
    diagnosis = found["it"]
    indices = [i for fold in folds for i in fold.held_out]
    shown = [
        fitting(fold.support(support), support[i].query, model.encoder, model.encoder.template, 256)
        for fold in folds
        for i in fold.held_out
    ]
    plain = [support[i].query for i in indices]
    expected = {
        "held_out": cross_predict(model, support, folds, seed=5, samples=0),
        "prior": held_out_answers(support, indices, model.predict(None, plain, samples=0)),
        "in_context": held_out_answers(support, indices, model.predict(None, shown, samples=0)),
    }
    for name, rows in expected.items():
        one, other = getattr(diagnosis, name), Estimate.of(rows)
        assert one.nll == pytest.approx(other.nll, abs=5e-3), name
        assert one.correct == other.correct
    phi = model.adapt(support, seed=5).posterior
    assert diagnosis.movement.kl_nats == pytest.approx(movement(phi, model.prior).kl_nats, rel=1e-2)


def test_the_command_diagnoses_labelled_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = FakeWorker()
    monkeypatch.setattr("service.executors.loading.load_worker", lambda settings: worker)
    rows = tmp_path / "support.jsonl"
    rows.write_text("".join(json.dumps({**row, "options": OPTIONS}) + "\n" for row in SUPPORT))
    arguments = ["diagnose", str(rows), "--folds", "3", "--data-dir", str(tmp_path / "data")]
    run = CliRunner().invoke(app, [*arguments, "--json"])
    assert run.exit_code == 0, run.output
    answer = json.loads(run.output)
    assert (answer["folds"], answer["held_out"]["n"]) == (3, 6)
    again = CliRunner().invoke(app, ["diagnose", answer["adapter_id"], *arguments[2:]])
    assert answer["verdict"] in again.output
    assert len(worker.adapted) == 1 + 3 + 1
