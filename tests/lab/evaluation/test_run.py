"""An evaluation on a tiny base: resumed, in parallel, as tables without a model, and refused."""

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abmll.adaptation.settings import AdaptSettings
from abmll.errors import AbmllError
from abmll.meta.settings import MetaSettings, OuterRule
from abmll.model import FewShotModel
from abmll.posterior.posteriors import GlobalPosterior
from abmll.text.draws import draw_uniformly
from abmll.text.files import read_task
from abmll.text.prompting import PromptTemplate
from lab.evaluation import cell_runner
from lab.evaluation.cell_runner import CellRunner
from lab.evaluation.cells import Cell, CellResult
from lab.evaluation.configuration import Entry, EvaluationConfig, EvaluationData
from lab.evaluation.methods.adapted import Adapted
from lab.evaluation.methods.embeddings import Embeddings
from lab.evaluation.methods.prior import Prior
from lab.evaluation.protocol import LeakError
from lab.evaluation.results import write_report
from lab.evaluation.run import run_evaluation
from lab.evaluation.study import Study
from lab.training.configuration import DataSettings, TrainingConfig
from lab.training.run import run_training
from model_store.posteriors import PosteriorManifest, save_posterior
from model_store.pretrained.bases import load_base
from tests.lab.conftest import Run
from tests.tiny import make_config

LABELS = ["positive", "negative"]
UNTRAINED = make_config(rank=2, alpha=4.0, first_layer=2, modules=("q", "down"), offset=0.05)
SERVE = AdaptSettings(steps=2, learning_rate=0.01, batch_size=4)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABMLL_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write three tasks of two classes, one of multiple choice and one of free text.

    There is a split, and two of the tasks share sentences.
    """
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
    """Save an artifact of a random theta for the tiny base, with `trained_on` in its manifest."""
    import torch

    base = load_base(str(checkpoint), quantisation="none", progress=False)
    model = FewShotModel(base.model, base.tokenizer, UNTRAINED)
    noise = 0.05 * torch.randn(len(model.prior.values), generator=torch.Generator().manual_seed(0))
    theta = GlobalPosterior(UNTRAINED, model.prior.sites, model.prior.values + noise)
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
        posterior=UNTRAINED,
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
    cells = Study(config).cells()
    # `lora` has the validation task too. The task of free text is left out.
    assert len(cells) == (3 + 4 + 3) * 2
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
    in_parallel = Study(some).cells()
    assert len(in_parallel) == 14
    for cell in cells:
        whole = CellResult.load(tmp_path / "whole", cell)
        assert same(whole, CellResult.load(tmp_path / "parts", cell)), cell
        if cell in in_parallel:
            assert same(whole, CellResult.load(tmp_path / "parallel", cell)), cell


def test_a_cell_is_what_the_facade_says(config: EvaluationConfig, checkpoint: Path) -> None:
    """Methods with other adapters have run on the same base before."""
    study = Study(config)
    runner = CellRunner(study)
    for name in ("zero-shot", "lora"):
        runner.run(Cell(name, "one", "4", 13))
    found = runner.run(Cell("abmll-S3", "two", "4", 21))
    base = load_base(str(checkpoint), quantisation="none", progress=False)
    theta = study.posteriors[str(config.methods[2].posterior)].prior
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
    monkeypatch.setattr(cell_runner, "load_base", lambda *_, **__: pytest.fail("a model was loaded"))
    write_report(config, folder, "abmll evaluate")
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
    write_report(config, folder, "abmll evaluate --report-only")
    assert "**1 cells have not run**" in (folder / "results.md").read_text()


def test_a_posterior_is_not_tested_on_what_it_has_seen(
    config: EvaluationConfig, checkpoint: Path, tmp_path: Path
) -> None:
    for name, trained_on, reason in (
        ("seen", ["two"], "two is itself among them"),
        ("kin", ["elsewhere"], "one shares its sentences with elsewhere"),
    ):
        entry = Entry("leaky", Adapted(), posterior=posterior(tmp_path / name, checkpoint, trained_on))
        leaky = replace(config, methods=(*config.methods, entry))
        with pytest.raises(LeakError, match=f"{name} was trained on.*{reason}"):
            run_evaluation(leaky, tmp_path / "out", lambda done, total, cell: None)
        assert not (tmp_path / "out").exists()
    mute = Entry("mute", Adapted(), posterior=posterior(tmp_path / "mute", checkpoint, None))
    with pytest.raises(AbmllError, match="does not say"):
        Study(replace(config, methods=(*config.methods, mute)))
    # The posterior was trained on `three`, so its temperature must not be fitted on it.
    with pytest.raises(LeakError, match="three"):
        Study(replace(config, temperature=("abmll-S3",)))


def test_a_folder_holds_one_method_of_a_name(config: EvaluationConfig, tmp_path: Path) -> None:
    small = replace(
        config, methods=config.methods[:1], baseline="zero-shot", temperature=(), shots=(4,), seeds=(13,)
    )
    run_evaluation(small, tmp_path / "out", lambda done, total, cell: None)
    more = replace(small, seeds=(13, 21), methods=(*small.methods, config.methods[1]))
    seen: list[int] = []
    run_evaluation(more, tmp_path / "out", lambda done, total, cell: seen.append(done))
    assert seen == list(range(4, 13))  # only the new seeds and methods run
    other = replace(small, methods=(Entry("zero-shot", Prior(samples=2)),))
    with pytest.raises(AbmllError, match="other methods of the names zero-shot"):
        run_evaluation(other, tmp_path / "out", lambda done, total, cell: None)
    # Without `two`, the items of another task count as foreign.
    fewer = replace(small, data=replace(config.data, leave_out=("two",)))
    with pytest.raises(AbmllError, match="out-of-distribution tasks for one"):
        run_evaluation(fewer, tmp_path / "out", lambda done, total, cell: None)


def test_methods_go_to_the_tasks_that_they_are_for(config: EvaluationConfig) -> None:
    entries = (
        Entry("embeddings", Embeddings()),
        Entry("elsewhere", Prior(), splits=("other",)),
        Entry("here", Prior(), splits=("split",)),
    )
    cells = Study(replace(config, methods=entries, baseline="here", temperature=())).cells()
    tasks = {entry.name: {cell.task for cell in cells if cell.method == entry.name} for entry in entries}
    assert tasks == {"embeddings": {"one", "two"}, "elsewhere": set(), "here": {"one", "two", "choice"}}
    with pytest.raises(AbmllError, match="for validation too"):
        Study(replace(config, data=replace(config.data, validation=("one",))))


@pytest.mark.parametrize("rule", ["reptile", "structured", "fomaml"])
def test_a_baseline_that_meta_train_made_is_a_point(
    rule: OuterRule, config: EvaluationConfig, checkpoint: Path, tmp_path: Path
) -> None:
    """With a rule for points, samples of the trained posterior are its mean, adapted or not."""
    inner = AdaptSettings(steps=2, learning_rate=0.01, batch_size=4)
    run = TrainingConfig(
        id=rule,
        data=DataSettings(config.data.folder, leave_out=("one", "two", "choice", "free")),
        base=str(checkpoint),
        quantisation="none",
        posterior=UNTRAINED,
        meta=MetaSettings(visits=2, inner=inner, outer=rule, outer_rate=0.01, average_from=0.0),
        serve=SERVE,
    )
    trained = run_training(run, tmp_path / "run", lambda metrics: None)
    save_posterior(tmp_path / rule, trained.prior, trained.manifest)
    entries = tuple(Entry(f"S{n}", Adapted(samples=n), posterior=str(tmp_path / rule)) for n in (0, 3))
    runner = CellRunner(Study(replace(config, methods=entries, baseline="S0", temperature=())))
    mean, sampled = (runner.run(Cell(entry.name, "one", "4", 13)) for entry in entries)
    assert mean.probabilities.ravel().tolist() == pytest.approx(
        sampled.probabilities.ravel().tolist(), abs=1e-3
    )
    assert mean.cost.gradient_steps == 2


def test_the_command_runs_a_configuration_file(
    data: Path, checkpoint: Path, tmp_path: Path, run: Run
) -> None:
    text = f"""
id: small
base: {checkpoint}
quantisation: none
data: {{folder: {data}, tasks: [one, two]}}
posterior: {{layout: {{rank: 2, first_layer: 2, modules: [q]}}}}
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
    found = run("evaluate", "--config", path, "--out", out)
    assert found.exit_code == 0, found.output
    assert {p.name for p in out.iterdir()} >= {"results.json.gz", "results.md", "methods.json", "cells"}
    cells = sorted(p.stat().st_mtime_ns for p in out.rglob("*.npz"))
    found = run("evaluate", "--config", path, "--out", out, "--report-only")
    assert found.exit_code == 0, found.output
    assert sorted(p.stat().st_mtime_ns for p in out.rglob("*.npz")) == cells
    for right, wrong in (
        ("kind: prior", "kind: nothing"), ("baseline: zero-shot", "baseline: nobody"), ("items: 4", "itemz: 4"),
        ("max_tokens: 120", "max_token: 120"),
    ):  # fmt: skip
        path.write_text(text.replace(right, wrong))
        found = run("evaluate", "--config", path, "--out", out)
        assert found.exit_code == 2
        assert wrong.split(": ")[wrong.startswith(("kind", "base"))] in found.output


@pytest.mark.parametrize("library", ["matplotlib.figure", "sklearn.metrics"])
def test_without_the_extra_the_command_says_so_in_one_line(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    for name in [name for name in sys.modules if name.startswith("lab.evaluation.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / "study.yaml").touch()
    found = run("evaluate", "--config", tmp_path / "study.yaml")
    assert (found.exit_code, found.stdout) == (2, "")
    assert found.stderr.splitlines() == [f"error: {library} is not installed: pip install '.[lab]'"]
