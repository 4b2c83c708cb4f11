"""Dry runs, which say what a run would do and what is wrong in the data; and whitening."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from abmll.adaptation.settings import AdaptSettings
from abmll.errors import AbmllError
from abmll.meta.settings import MetaSettings
from abmll.similarity.gaussian_process import SimilarityConfig
from lab.training.configuration import DataSettings, TrainingConfig
from lab.training.dry_run import dry_run
from lab.training.run import run_training
from tests.lab.conftest import Run
from tests.tiny import make_config

LABELS = ["positive", "negative"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABMLL_CACHE_DIR", str(tmp_path / "cache"))


def write(folder: Path, name: str, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> None:
    (folder / name).mkdir(parents=True)
    for part, rows in (("train", train), ("test", test)):
        lines = [json.dumps({"task": name, "options": LABELS, **row}) + "\n" for row in rows]
        (folder / name / f"{part}.jsonl").write_text("".join(lines))


@pytest.fixture
def config(tmp_path: Path, checkpoint: Path) -> TrainingConfig:
    """Return a configuration for two tasks that share two inputs.

    The second task has a conflict, a leak, and an example that is too long.
    """
    data = tmp_path / "data"
    first = [{"input": f"film {i}", "output": LABELS[i % 2]} for i in range(12)]
    second = [
        {"input": "film 0", "output": "positive"},
        {"input": "film 0", "output": "negative"},
        {"input": "film 1", "output": "positive"},
        {"input": "film " * 60, "output": "positive"},
    ]
    write(data, "first", first, [{"input": "a story", "output": "positive"}])
    write(data, "second", second, [{"input": "film 1", "output": "negative"}])
    return TrainingConfig(
        id="small",
        data=DataSettings(data),
        base=str(checkpoint),
        quantisation="none",
        posterior=make_config(rank=2, first_layer=2, modules=("q",)),
        meta=MetaSettings(visits=100, inner=AdaptSettings(steps=2, batch_size=4), max_row_tokens=40),
    )


def test_a_dry_run_finds_what_is_wrong_and_estimates_the_time(config: TrainingConfig) -> None:
    found = dry_run(config)
    first, second = found.tasks
    assert (first.name, first.examples, first.fitting, first.problems) == ("first", 12, 12, ())
    assert (second.examples, second.fitting) == (4, 3)
    assert second.longest_tokens > 40 >= second.median_tokens
    assert [problem.split(":")[0] for problem in second.problems] == [
        "3 examples for the 8 of a visit",
        "1 inputs have more than one label",
        "1 test inputs are among the training inputs",
    ]
    assert found.shared == (("first", "second", 2),)
    assert found.tokens_per_visit == pytest.approx(
        8 * (first.mean_fitting_tokens + second.mean_fitting_tokens) / 2
    )
    assert found.seconds > 0


def test_the_command_tells_it_and_trains_nothing(
    config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    text = f"""
id: small
base: {config.base}
quantisation: none
data: {{folder: {config.data.folder}}}
posterior: {{layout: {{rank: 2, first_layer: 2, modules: [q]}}}}
meta: {{visits: 100, inner: {{steps: 2, batch_size: 4}}, max_row_tokens: LIMIT}}
"""
    path = tmp_path / "run.yaml"
    path.write_text(text.replace("LIMIT", "40"))
    found = run("meta-train", "--config", path, "--dry-run")
    assert found.exit_code == 0, found.output
    for words in ("first and second share 2 inputs", "100 visits of", "on this machine"):
        assert words in found.output
    assert not (tmp_path / "runs").exists()
    path.write_text(text.replace("LIMIT", "3"))
    found = run("meta-train", "--config", path, "--dry-run")
    assert found.exit_code == 2
    assert "would fail" in found.output


def test_a_posterior_with_a_gaussian_process_is_trained_with_its_whitening(
    config: TrainingConfig, tmp_path: Path
) -> None:
    """The whitening is finite, and the same each time that the finished run is read."""
    with_gaussian_process = replace(config.posterior, similarity=SimilarityConfig(2.0, spread=0.5))
    config = replace(config, meta=replace(config.meta, visits=2), posterior=with_gaussian_process)
    found = [run_training(config, tmp_path / "run", lambda _: None).prior for _ in range(2)]
    assert found[0].config.similarity == SimilarityConfig(2.0, 0.5, 0.5)
    one, other = (prior.whitening for prior in found)
    assert one is not None
    assert other is not None
    assert torch.equal(one.map, other.map)
    assert torch.isfinite(one.map).all()
    assert one.mean.abs().max() > 0
    plain = run_training(
        replace(config, posterior=replace(with_gaussian_process, similarity=None)),
        tmp_path / "run",
        lambda _: None,
    ).prior
    assert plain.whitening is None
    assert torch.equal(plain.values, found[0].values)


def test_tasks_are_listed_or_of_a_split(config: TrainingConfig) -> None:
    listed = replace(config, data=replace(config.data, tasks=("second", "first"), leave_out=("second",)))
    assert [task.name for task in dry_run(listed).tasks] == ["first"]
    with pytest.raises(AbmllError, match="not both"):
        dry_run(replace(config, data=replace(config.data, tasks=("first",), split="metaicl/qa_to_qa")))
