"""Common rules of both kinds of configuration files: `like`, and the refusal of unknown names."""

from dataclasses import replace
from pathlib import Path

import pytest

from abmll.errors import AbmllError
from lab.evaluation.configuration import EvaluationConfig
from lab.training.configuration import TrainingConfig


def test_a_configuration_like_another_holds_what_differs(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    (tmp_path / "first.yaml").write_text(
        "id: first\ndata: {folder: data, tasks: [a, b]}\nmeta: {visits: 9, inner: {steps: 3, beta: 1}}\n"
    )
    second, third = tmp_path / "deeper/second.yaml", tmp_path / "third.yaml"
    second.write_text("like: ../first.yaml\nid: second\ndata: {tasks: [c]}\nmeta: {inner: {beta: 0}}\n")
    third.write_text("like: deeper/second.yaml\nid: third\nmeta: {seed: 4}\n")
    found = TrainingConfig.read(third)
    assert (found.id, found.data.folder, found.data.tasks) == ("third", Path("data"), ("c",))
    assert (found.meta.visits, found.meta.seed) == (9, 4)
    assert (found.meta.inner.steps, found.meta.inner.beta) == (3, 0)
    (tmp_path / "first.yaml").write_text("like: third.yaml\n")
    with pytest.raises(AbmllError, match="`like` comes back to"):
        TrainingConfig.read(third)
    third.write_text("like: nowhere.yaml\nid: third\n")
    with pytest.raises(AbmllError, match=r"third\.yaml: .*nowhere"):
        TrainingConfig.read(third)


@pytest.mark.parametrize(
    "wrong", ["vissits: 3", "meta: {inner: {step: 3}}", "data: {folder: data, task: [a]}"]
)
def test_a_name_that_means_nothing_is_refused(wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"id: small\n{'' if 'data' in wrong else 'data: {folder: data}'}\n{wrong}\n")
    with pytest.raises(AbmllError, match=r"run\.yaml: (?s:.*)(vissits|step|task)"):
        TrainingConfig.read(path)


def test_a_study_like_another_holds_what_differs(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(
        "id: first\ndata: {folder: data, tasks: [a], validation: [v]}\nserve: {steps: 6, batch_size: 8}\n"
        "baseline: one\nmethods:\n  - {name: one, method: {kind: prior}}\n  - {name: two, method: {kind: channel}}\n"
    )
    second.write_text("like: first.yaml\nid: second\ndata: {tasks: [], splits: [s]}\nserve: {steps: 3}\n")
    one, other = EvaluationConfig.read(first), EvaluationConfig.read(second)
    assert other == replace(
        one,
        id="second",
        data=replace(one.data, tasks=(), splits=("s",)),
        serve=replace(one.serve, steps=3),
    )
    second.write_text("like: first.yaml\nmethods:\n  - {name: one, method: {kind: embeddings}}\n")
    assert [entry.method.kind for entry in EvaluationConfig.read(second).methods] == ["embeddings"]
    second.write_text("like: first.yaml\nbaseline: three\n")
    with pytest.raises(AbmllError, match=r"second\.yaml: no methods of the names three"):
        EvaluationConfig.read(second)
