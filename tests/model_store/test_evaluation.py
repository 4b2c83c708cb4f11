"""An evaluation on a tiny base: resumed equals uninterrupted, parallel equals serial, tables without a model, and refusals."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from abmll.adapt import AdaptSettings
from abmll.errors import AbmllError
from abmll.evaluation.methods.adapted import Adapted
from abmll.evaluation.methods.embeddings import Embeddings
from abmll.evaluation.methods.prior import Prior
from abmll.evaluation.protocol import LeakError
from abmll.evaluation.records import Cell, CellResult
from abmll.meta.train import MetaSettings, OuterRule
from abmll.model import FewShotModel
from abmll.posterior import AdapterConfig, GlobalPosterior
from abmll.prompting import PromptTemplate
from abmll.tasks import draw_uniformly, read_task
from model_store.bases import load_base
from model_store.evaluation import run as run_module
from model_store.evaluation.config import Entry, EvaluationConfig, EvaluationData
from model_store.evaluation.results import report
from model_store.evaluation.run import Evaluation, run_evaluation
from model_store.posteriors import PosteriorManifest, save_posterior
from model_store.training import DataSettings, TrainingConfig, run_training
from service.cli import app

LABELS = ["positive", "negative"]
ADAPTER = AdapterConfig(rank=2, alpha=4.0, first_layer=2, modules=("q", "down"), spread_offset=0.05)
SERVE = AdaptSettings(steps=2, learning_rate=0.01, batch_size=4)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABMLL_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three tasks of two classes, one of multiple choice and one of free text, with a split and a shared pair."""
    folder = tmp_path / "data"
    words = ["film", "story", "actors", "money", "Paris", "France", "dull", "great", "badly", "told"]
    for number, name in enumerate(("one", "two", "three", "choice", "free")):
        rows = []
        for i, word in enumerate(words * 3):
            label = LABELS[(i + number) % 2]
            options = {"choice": [f"a{i}", f"b{i}"], "free": []}.get(name, LABELS)
            output = options[i % 2] if name == "choice" else label
            rows.append({"task": name, "input": f"{word} {i} {name}", "output": output, "options": options})
        (folder / name).mkdir(parents=True)
        for part, chosen in (("train", rows[:20]), ("test", rows[20:])):
            (folder / name / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    names = ["one", "two", "three", "choice", "free"]
    entries: list[dict[str, Any]] = [{"task": name} for name in names]
    entries[0]["shares_inputs_with"] = {"elsewhere": 5}
    (folder / "tasks.json").write_text(json.dumps({"tasks": entries}))
    (folder / "splits.json").write_text(
        json.dumps({"split": {"test": {"have": ["one", "two", "choice", "free"]}}})
    )
    return folder


def posterior(folder: Path, checkpoint: Path, trained_on: list[str] | None) -> str:
    """An artifact with a random theta for the tiny base, that says what it was trained on."""
    import torch

    base = load_base(str(checkpoint), quantisation="none", progress=False)
    model = FewShotModel(base.model, base.tokenizer, ADAPTER)
    noise = 0.05 * torch.randn(len(model.prior.values), generator=torch.Generator().manual_seed(0))
    theta = GlobalPosterior(ADAPTER, model.prior.sites, model.prior.values + noise)
    manifest = PosteriorManifest.of(
        theta,
        id=folder.name,
        base=base.identity,
        adapt={"steps": 3, "learning_rate": 0.01, "batch_size": 4, "beta": 0.0},
        template=PromptTemplate().to_json(),
        training={} if trained_on is None else {"data": [{"task": name} for name in trained_on]},
        metrics={},
    )
    save_posterior(folder, theta, manifest)
    return str(folder)


@pytest.fixture
def config(data: Path, checkpoint: Path, tmp_path: Path) -> EvaluationConfig:
    theta = posterior(tmp_path / "theta", checkpoint, ["three"])
    return EvaluationConfig(
        id="study",
        data=EvaluationData(data, splits=("split",), validation=("three",)),
        methods=(
            Entry("zero-shot", Prior()),
            Entry("lora", Adapted(samples=0), noise=False),
            Entry("abmll-S3", Adapted(samples=3), posterior=theta),
        ),
        baseline="lora",
        base=str(checkpoint),
        quantisation="none",
        adapter=ADAPTER,
        serve=SERVE,
        temperature=("lora",),
        shots=(4, "2 per class"),
        seeds=(13, 21),
        items=6,
        foreign_items=4,
        resamples=50,
    )


def same(one: CellResult, other: CellResult) -> bool:
    arrays = ("probabilities", "labels", "mutual_information", "foreign_probabilities", "foreign_information")
    equal = [np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in arrays]
    return all(equal) and one.cell == other.cell and one.cost.tokens == other.cost.tokens


def test_resumed_and_parallel_equal_uninterrupted(config: EvaluationConfig, tmp_path: Path) -> None:
    config = replace(config, shots=("2 per class",))
    seen: list[tuple[int, int]] = []
    run_evaluation(config, tmp_path / "whole", lambda done, total, cell: seen.append((done, total)))
    cells = Evaluation(config).cells()
    assert len(cells) == (3 + 4 + 3) * 2  # lora has the validation task too; free text is left out
    assert seen == [(i + 1, len(cells)) for i in range(len(cells))]

    def stop(done: int, total: int, cell: Cell) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_evaluation(config, tmp_path / "parts", stop)
    kept = len(list((tmp_path / "parts").rglob("*.npz")))
    assert kept == 7
    again: list[int] = []
    run_evaluation(config, tmp_path / "parts", lambda done, total, cell: again.append(done))
    assert again == list(range(8, len(cells) + 1))
    some = replace(config, methods=config.methods[1:])
    run_evaluation(some, tmp_path / "parallel", lambda done, total, cell: None, processes=2)
    in_parallel = Evaluation(some).cells()
    assert len(in_parallel) == 14
    for cell in cells:
        whole = CellResult.load(tmp_path / "whole", cell)
        assert same(whole, CellResult.load(tmp_path / "parts", cell)), cell
        if cell in in_parallel:
            assert same(whole, CellResult.load(tmp_path / "parallel", cell)), cell


def test_a_cell_is_what_the_facade_says(config: EvaluationConfig, checkpoint: Path) -> None:
    """Also when methods with other adapters ran on the same base before."""
    evaluation = Evaluation(config)
    for name in ("zero-shot", "lora"):
        evaluation.run(Cell(name, "one", "4", 13))
    found = evaluation.run(Cell("abmll-S3", "two", "4", 21))
    base = load_base(str(checkpoint), quantisation="none", progress=False)
    theta = evaluation.posteriors[str(config.methods[2].posterior)].prior
    model = FewShotModel(base.model, base.tokenizer, theta)
    task = read_task(config.data.folder / "two")
    settings = AdaptSettings(steps=3, learning_rate=0.01, batch_size=4)
    phi = model.adapt(draw_uniformly(task.train, 4, 21), settings, 21).posterior
    expected = model.predict(phi, [example.query for example in task.test[:6]], samples=3, seed=21)
    assert found.probabilities.tolist() == pytest.approx(
        np.array([e.predictive.probabilities for e in expected]), abs=1e-6
    )
    assert found.mutual_information == pytest.approx(
        [e.predictive.uncertainty.mutual_information for e in expected], abs=1e-6
    )
    assert found.labels.tolist() == [example.options.index(example.output) for example in task.test[:6]]
    assert len(found.foreign_probabilities) == 4
    assert found.cost.gradient_steps == 3
    assert found.cost.peak_memory_bytes > 10**6


def test_tables_come_from_the_cells_alone(
    config: EvaluationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = replace(config, shots=(4,)), tmp_path / "study"
    run_evaluation(config, folder, lambda done, total, cell: None)
    monkeypatch.setattr(run_module, "load_base", lambda *_, **__: pytest.fail("a model was loaded"))
    report(config, folder, "abmll evaluate")
    found = json.loads(gzip.decompress((folder / "results.json.gz").read_bytes()))
    (section,) = found["sections"]
    assert (section["split"], section["shots"]) == ("split", "4")
    assert list(section["methods"]) == ["zero-shot", "lora", "abmll-S3", "lora+T"]
    assert list(section["methods"]["lora"]["tasks"]) == ["one", "two", "choice"]
    accuracy = [
        (r.probabilities.argmax(1) == r.labels).mean()
        for r in (CellResult.load(folder, Cell("lora", "one", "4", s)) for s in (13, 21))
    ]
    assert section["methods"]["lora"]["tasks"]["one"]["accuracy"] == pytest.approx(np.mean(accuracy))
    assert section["methods"]["lora"]["tasks"]["choice"]["macro_f1"] is None
    assert section["methods"]["lora+T"]["tasks"]["one"]["accuracy"] == pytest.approx(np.mean(accuracy))
    assert found["run"]["temperatures"]["lora"]["temperature"] > 0
    assert found["run"]["left_out_without_options"] == ["free"]
    assert found["run"]["missing_cells"] == 0
    page = (folder / "results.md").read_text()
    assert "### Against lora" in page
    for plot in ("reliability-split-k4.png", "risk-coverage-split-k4.png"):
        assert (folder / plot).read_bytes().startswith(b"\x89PNG")
    next((folder / "cells" / "lora").glob("one-*seed13.npz")).unlink()
    report(config, folder, "abmll evaluate --report-only")
    assert "**1 cells have not run**" in (folder / "results.md").read_text()


def test_a_posterior_is_not_tested_on_what_it_has_seen(
    config: EvaluationConfig, checkpoint: Path, tmp_path: Path
) -> None:
    for name, trained_on, told in (
        ("seen", ["two"], "two is itself among them"),
        ("kin", ["elsewhere"], "one shares its sentences with elsewhere"),
    ):
        entry = Entry("leaky", Adapted(), posterior=posterior(tmp_path / name, checkpoint, trained_on))
        leaky = replace(config, methods=(*config.methods, entry))
        with pytest.raises(LeakError, match=f"{name} was trained on.*{told}"):
            run_evaluation(leaky, tmp_path / "out", lambda done, total, cell: None)
        assert not (tmp_path / "out").exists()
    mute = Entry("mute", Adapted(), posterior=posterior(tmp_path / "mute", checkpoint, None))
    with pytest.raises(AbmllError, match="does not say"):
        Evaluation(replace(config, methods=(*config.methods, mute)))
    # `three` was trained on: a temperature for that posterior must not be fitted on it either.
    with pytest.raises(LeakError, match="three"):
        Evaluation(replace(config, temperature=("abmll-S3",)))


def test_a_folder_holds_one_method_of_a_name(config: EvaluationConfig, tmp_path: Path) -> None:
    small = replace(
        config, methods=config.methods[:1], baseline="zero-shot", temperature=(), shots=(4,), seeds=(13,)
    )
    run_evaluation(small, tmp_path / "out", lambda done, total, cell: None)
    more = replace(small, seeds=(13, 21), methods=(*small.methods, config.methods[1]))
    seen: list[int] = []
    run_evaluation(more, tmp_path / "out", lambda done, total, cell: seen.append(done))
    assert seen == list(range(4, 13))  # more seeds and methods are welcome; what was there is kept
    other = replace(small, methods=(Entry("zero-shot", Prior(samples=2)),))
    with pytest.raises(AbmllError, match="other methods of the names zero-shot"):
        run_evaluation(other, tmp_path / "out", lambda done, total, cell: None)
    fewer = replace(
        small, data=replace(config.data, leave_out=("two",))
    )  # another task's items count as foreign then
    with pytest.raises(AbmllError, match="out-of-distribution tasks for one"):
        run_evaluation(fewer, tmp_path / "out", lambda done, total, cell: None)


def test_methods_go_to_the_tasks_that_they_are_for(config: EvaluationConfig) -> None:
    entries = (
        Entry("embeddings", Embeddings()),
        Entry("elsewhere", Prior(), splits=("other",)),
        Entry("here", Prior(), splits=("split",)),
    )
    cells = Evaluation(replace(config, methods=entries, baseline="here", temperature=())).cells()
    tasks = {entry.name: {cell.task for cell in cells if cell.method == entry.name} for entry in entries}
    assert tasks == {"embeddings": {"one", "two"}, "elsewhere": set(), "here": {"one", "two", "choice"}}
    with pytest.raises(AbmllError, match="for validation too"):
        Evaluation(replace(config, data=replace(config.data, validation=("one",))))


@pytest.mark.parametrize("rule", ["reptile", "structured", "fomaml"])
def test_a_baseline_that_meta_train_made_is_a_point(
    rule: OuterRule, config: EvaluationConfig, checkpoint: Path, tmp_path: Path
) -> None:
    """Samples of what `meta-train` leaves with a rule for points are its mean, adapted or not."""
    inner = AdaptSettings(steps=2, learning_rate=0.01, batch_size=4)
    run = TrainingConfig(
        id=rule,
        data=DataSettings(config.data.folder, leave_out=("one", "two", "choice", "free")),
        base=str(checkpoint),
        quantisation="none",
        adapter=ADAPTER,
        meta=MetaSettings(visits=2, inner=inner, outer=rule, outer_rate=0.01, average_from=0.0),
        serve=SERVE,
    )
    result = run_training(run, tmp_path / "run", lambda metrics: None)
    manifest = PosteriorManifest.of(
        result.prior, id=rule, base=result.base, adapt=result.adapt, template=run.template.to_json(),
        training=result.record, metrics=result.metrics,
    )  # fmt: skip
    save_posterior(tmp_path / rule, result.prior, manifest)
    entries = tuple(Entry(f"S{n}", Adapted(samples=n), posterior=str(tmp_path / rule)) for n in (0, 3))
    evaluation = Evaluation(replace(config, methods=entries, baseline="S0", temperature=()))
    mean, sampled = (evaluation.run(Cell(entry.name, "one", "4", 13)) for entry in entries)
    assert mean.probabilities.ravel().tolist() == pytest.approx(
        sampled.probabilities.ravel().tolist(), abs=1e-3
    )
    assert mean.cost.gradient_steps == 2


def test_the_command_runs_a_configuration_file(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    text = f"""
id: small
base: {checkpoint}
quantisation: none
data: {{folder: {data}, tasks: [one, two]}}
adapter: {{rank: 2, first_layer: 2, modules: [q]}}
baseline: zero-shot
methods:
  - {{name: zero-shot, method: {{kind: prior}}}}
  - {{name: icl, method: {{kind: contextual, of: {{kind: in_context, max_tokens: 120}}}}}}
seeds: [13]
shots: [4]
items: 4
resamples: 20
"""
    path, out = tmp_path / "small.yaml", tmp_path / "results"
    path.write_text(text)
    found = CliRunner().invoke(app, ["evaluate", "--config", str(path), "--out", str(out)])
    assert found.exit_code == 0, found.output
    assert {p.name for p in out.iterdir()} >= {"results.json.gz", "results.md", "methods.json", "cells"}
    cells = sorted(p.stat().st_mtime_ns for p in out.rglob("*.npz"))
    found = CliRunner().invoke(app, ["evaluate", "--config", str(path), "--out", str(out), "--report-only"])
    assert found.exit_code == 0, found.output
    assert sorted(p.stat().st_mtime_ns for p in out.rglob("*.npz")) == cells
    for wrong, told in (
        ("kind: prior", "kind: nothing"), ("baseline: zero-shot", "baseline: nobody"), ("items: 4", "itemz: 4"),
        ("max_tokens: 120", "max_token: 120"),
    ):  # fmt: skip
        path.write_text(text.replace(wrong, told))
        found = CliRunner().invoke(app, ["evaluate", "--config", str(path), "--out", str(out)])
        assert found.exit_code == 2
        assert told.split(": ")[told.startswith(("kind", "base"))] in found.output
