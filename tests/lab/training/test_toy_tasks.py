"""The toy tasks that ship, and the run on them that the documentation shows."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import lab
from abmll.meta.collection import Collection
from lab.evaluation.configuration import EvaluationConfig
from lab.training.configuration import TrainingConfig
from lab.training.run import run_training

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path(lab.__file__).parent / "toy_tasks"
CONFIG = ROOT / "configs/toy.yaml"
PAGE = (ROOT / "docs/toy-tasks.md").read_text("utf-8")


def test_three_tasks_ship_with_their_licence_and_no_input_twice() -> None:
    collection = Collection.open(FOLDER)
    assert [entry["licence"] for entry in collection.about.values()] == ["Apache-2.0"] * 3
    assert sorted(collection.about) == sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
    for task in collection.read(list(collection.about)):
        rows = [*task.train, *task.test]
        assert len({row.query.input for row in rows}) == len(rows) == len(task.train) + len(task.test)
        assert {row.output for row in task.train} == {row.output for row in task.test}
        assert len(task.train) == 24


def test_the_page_shows_the_tasks_and_the_configuration() -> None:
    shown = dict(re.findall(r"^\| `(toy-\w+)` \| ([\w, ]+?) \|", PAGE, re.MULTILINE))
    found = {
        path.parent.name: ", ".join(json.loads(path.read_text("utf-8").splitlines()[0])["options"])
        for path in FOLDER.glob("*/train.jsonl")
    }
    assert shown == found
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert yaml.safe_load(block) == yaml.safe_load(CONFIG.read_text("utf-8"))


def test_the_study_tests_what_the_run_left_out() -> None:
    run, study = TrainingConfig.read(CONFIG), EvaluationConfig.read(ROOT / "configs/evaluate/toy.yaml")
    assert study.data.tasks == run.data.leave_out
    assert study.data.folder == run.data.folder


def test_the_run_goes_through_on_a_tiny_base(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ABMLL_CACHE_DIR", str(tmp_path / "cache"))
    config = TrainingConfig.read(CONFIG)
    layout = replace(config.posterior.layout, first_layer=2)
    config = replace(
        config,
        base=str(checkpoint),
        quantisation="none",
        posterior=replace(config.posterior, layout=layout),
        meta=replace(config.meta, max_row_tokens=200),
    )
    visited: list[str] = []
    trained = run_training(config, tmp_path / "run", lambda found: visited.extend(found["tasks"]))
    assert len(visited) == config.meta.visits
    assert set(visited) == {"toy-mood", "toy-subject"}
    assert {row["task"] for row in trained.manifest.training["data"]} == {"toy-mood", "toy-subject"}
