"""Meta-training: resumed equals uninterrupted, both outer rules, and which tasks may be trained on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from abmll.adapt import AdaptSettings
from abmll.errors import AbmllError
from abmll.meta.collection import Collection
from abmll.meta.train import MetaSettings, meta_train, task_order, trained_prior
from abmll.model import FewShotModel
from abmll.tasks import Example, Task

SETTINGS = MetaSettings(
    visits=7,
    inner=AdaptSettings(steps=2, learning_rate=0.01, batch_size=3, beta=1e-6),
    checkpoint_every=2,
    seed=5,
)
LABELS = ("positive", "negative")


def tasks() -> list[Task]:
    words = ["wonderful", "dull", "great film", "badly told", "Paris", "money back", "actors", "story"]
    make = lambda flip: tuple(Example(w, LABELS[(i + flip) % 2], LABELS) for i, w in enumerate(words))  # noqa: E731
    return [Task("first", make(0), ()), Task("second", make(1), ()), Task("third", make(0)[:5], ())]


@pytest.mark.parametrize(
    "settings",
    [SETTINGS, replace(SETTINGS, outer="adamw", outer_rate=1e-3, prior_beta=1e-6, carry_moments=True)],
    ids=["natural", "adamw"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    settings: MetaSettings, make_model: Callable[..., FewShotModel], tmp_path: Path
) -> None:
    whole = list(meta_train(make_model(), tasks(), settings, tmp_path / "whole"))
    interrupted = meta_train(make_model(), tasks(), settings, tmp_path / "parts")
    for _ in range(5):  # stops after visit 5; the last checkpoint is that of visit 4
        next(interrupted)
    interrupted.close()
    rest = list(meta_train(make_model(), tasks(), settings, tmp_path / "parts"))
    assert [m["visit"] for m in rest] == [5, 6, 7]
    one, other = (trained_prior(make_model(), tmp_path / name) for name in ("whole", "parts"))
    assert torch.equal(one.values, other.values)
    assert not torch.equal(one.values, make_model().prior.values)
    lines = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [line["losses"] for line in lines] == [m["losses"] for m in whole]
    assert [line["visit"] for line in lines] == list(range(1, 8))


def test_the_natural_rule_moves_theta_towards_phi(
    make_model: Callable[..., FewShotModel], tmp_path: Path
) -> None:
    settings = replace(SETTINGS, visits=1, outer_rate=1.0, average_from=1.0)
    model = make_model()
    (metrics,) = meta_train(model, tasks(), settings, tmp_path)
    moved = trained_prior(model, tmp_path).values - model.prior.values
    assert float(moved.norm()) == pytest.approx(metrics["moved"], rel=1e-4)
    half = replace(settings, outer_rate=0.5)
    list(meta_train(model, tasks(), half, tmp_path / "half"))
    torch.testing.assert_close(
        trained_prior(model, tmp_path / "half").values - model.prior.values, moved / 2, atol=1e-6, rtol=1e-4
    )


def test_meta_training_makes_adaptation_better(
    make_model: Callable[..., FewShotModel], tmp_path: Path
) -> None:
    """On tasks that agree (labels 0 and 2 of the list), the same steps reach a lower loss from the trained theta."""
    agreeing = [tasks()[0], tasks()[2]]
    settings = replace(SETTINGS, visits=12, inner=replace(SETTINGS.inner, steps=4))
    model = make_model(random_prior=False)
    visits = list(meta_train(model, agreeing, settings, tmp_path))
    first, last = (sum(m["losses"][0] for m in part) / 2 for part in (visits[:2], visits[-2:]))
    assert last < 0.5 * first


def test_another_run_does_not_resume_in_the_same_folder(
    make_model: Callable[..., FewShotModel], tmp_path: Path
) -> None:
    next(meta_train(make_model(), tasks(), SETTINGS, tmp_path))
    with pytest.raises(AbmllError, match="other settings"):
        next(meta_train(make_model(), tasks(), replace(SETTINGS, seed=6), tmp_path))


def test_every_task_is_visited_equally_often() -> None:
    order = task_order(["a", "b", "c"], 8, seed=1)
    assert len(order) == 8
    assert sorted(order[:3]) == sorted(order[3:6]) == ["a", "b", "c"]
    assert order != task_order(["a", "b", "c"], 8, seed=2)


def test_a_collection_keeps_shared_inputs_out_of_training(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(
            '{"task": "t", "input": "i", "output": "x", "options": ["x", "y"]}\n'
        )
        (tmp_path / name / "test.jsonl").write_text("")
    assert list(Collection.open(tmp_path).about) == ["a", "b"]
    splits = {"s": {"train": {"have": ["a", "b"], "have_disjoint": ["a"]}, "test": {"have": ["c"]}}}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    collection = Collection.open(tmp_path)
    assert collection.names("s", "train") == ["a"]
    assert collection.names("s", "test") == ["c"]
    assert collection.read(["a"])[0].train == (Example("i", "x", ("x", "y")),)
    with pytest.raises(AbmllError, match="no such tasks"):
        collection.read(["c"])
    with pytest.raises(AbmllError, match="unknown split"):
        collection.names("nothing", "train")
    with pytest.raises(AbmllError, match="holds no tasks"):
        Collection.open(tmp_path / "a")
