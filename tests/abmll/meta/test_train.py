"""Meta-training: resumed runs, outer rules, settings, and tasks that may be trained on."""

import json
import math
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from abmll.adaptation.settings import AdaptSettings
from abmll.errors import AbmllError
from abmll.meta.collection import Collection
from abmll.meta.episodes import choose_encoder, fitting_examples, listed, shuffle_options
from abmll.meta.settings import MetaSettings
from abmll.meta.state import MetaState
from abmll.meta.train import meta_train, task_order, trained_prior
from abmll.model import FewShotModel
from abmll.posterior.posteriors import GlobalPosterior, TaskPosterior
from abmll.text.prompting import PromptTemplate
from abmll.text.tasks import Example, Query, Task
from tests.tiny import make_config, tiny_model, tiny_tokenizer

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


EVERYTHING = replace(
    SETTINGS,
    outer="adamw",
    outer_rate=1e-3,
    prior_beta=1e-6,
    carry_moments=True,
    query=True,
    shuffle_options=True,
    templates=(PromptTemplate(before_input="Text: ", after_input="\nLabel:"),),
    ema=0.5,
)


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        replace(SETTINGS, outer="adamw", outer_rate=1e-3, prior_beta=1e-6, carry_moments=True),
        EVERYTHING,
    ],
    ids=["natural", "adamw", "all settings"],
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


@pytest.mark.parametrize(("umask", "rights"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_what_a_run_writes_has_the_rights_that_the_umask_leaves(
    umask: int, rights: int, make_model: Callable[..., FewShotModel], tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        list(meta_train(make_model(), tasks(), replace(SETTINGS, visits=2), tmp_path / "run"))
    finally:
        os.umask(before)
    found = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").iterdir()}
    assert "checkpoint.safetensors" in found
    assert set(found.values()) == {rights}, found


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


def test_theta_follows_the_mean_of_the_tasks_of_a_visit(
    make_model: Callable[..., FewShotModel], tmp_path: Path
) -> None:
    """Tasks of a visit are fitted side by side from one theta, as each is alone."""
    together = replace(SETTINGS, visits=1, tasks_per_visit=2, outer_rate=1.0, average_from=1.0)
    model = make_model()
    (metrics,) = meta_train(model, tasks()[:2], together, tmp_path / "both")
    moved = trained_prior(model, tmp_path / "both").values - model.prior.values
    order = task_order(["first", "second"], 2, SETTINGS.seed)
    assert metrics["tasks"] == order
    alone = replace(SETTINGS, visits=2, outer_rate=0.0, final_outer_rate=1.0, average_from=1.0)
    # The first visit does not move theta.
    list(meta_train(model, tasks()[:2], alone, tmp_path / "second"))
    second = trained_prior(model, tmp_path / "second").values - model.prior.values
    list(meta_train(model, tasks()[:2], replace(alone, visits=1, outer_rate=1.0), tmp_path / "first"))
    first = trained_prior(model, tmp_path / "first").values - model.prior.values
    assert float((moved - (first + second) / 2).norm()) < 0.05 * float(moved.norm())
    with pytest.raises(AbmllError, match="one task a visit"):
        next(meta_train(model, tasks(), replace(together, carry_moments=True), tmp_path / "no"))


def test_structured_training_fits_all_tasks_of_a_visit_in_each_step(tmp_path: Path) -> None:
    """The first step is that of Reptile. Then there is one phi, where Reptile has two."""
    both = replace(POINT, visits=1, tasks_per_visit=2)
    (joined,) = meta_train(point_model(), tasks()[:2], replace(both, outer="structured"), tmp_path / "joined")
    (apart,) = meta_train(point_model(), tasks()[:2], replace(both, outer="reptile"), tmp_path / "apart")
    assert sorted(joined["tasks"]) == ["first", "second"]
    assert joined["losses"][0] == pytest.approx(apart["losses"][0], abs=2e-4)
    assert joined["losses"][1] != pytest.approx(apart["losses"][1], abs=1e-2)


def test_meta_training_makes_adaptation_better(
    make_model: Callable[..., FewShotModel], tmp_path: Path
) -> None:
    """On tasks that agree, those of places 0 and 2, the first loss falls over the visits."""
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
    splits = {"s": {"train": {"have": ["a", "b"], "have_disjoint": ["a"]}, "test": {"have": ["b", "c"]}}}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    collection = Collection.open(tmp_path)
    assert collection.names("s", "train") == ["a"]
    assert collection.names("s", "test") == ["b"]  # c is not here
    assert collection.read(["a"])[0].train == (Example("i", "x", ("x", "y")),)
    with pytest.raises(AbmllError, match="no such tasks"):
        collection.read(["c"])
    (tmp_path / "b" / "test.jsonl").write_text("[]")
    with pytest.raises(AbmllError, match=r"^b/test\.jsonl line 1 is not a JSON object"):
        collection.read(["a", "b"])
    with pytest.raises(AbmllError, match="unknown split"):
        collection.names("nothing", "train")
    with pytest.raises(AbmllError, match="holds no tasks"):
        Collection.open(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tasks.json", b'{"tasks": [\n{"task": "a"},]}', r"tasks\.json line 2 is not JSON"),
        ("tasks.json", b'[{"task": "a"}]', r"tasks\.json is not \{"),
        ("tasks.json", b'{"tasks": ["a"]}', r"tasks\.json is not \{"),
        ("tasks.json", b"\xff", r"tasks\.json line 1 has the byte 0xFF, which is not UTF-8"),
        ("splits.json", b"", r"splits\.json line 1 is not JSON"),
    ],
)
def test_an_index_of_another_form_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text('\ufeff{"tasks": [{"task": "a"}]}')
    assert list(Collection.open(tmp_path).about) == ["a"]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AbmllError, match=message):
        Collection.open(tmp_path)


# ---- rules for points ----------------------------------------------------------------------------

POINT = replace(
    SETTINGS, inner=replace(SETTINGS.inner, beta=0.0), average_from=1.0, outer_rate=0.5, final_outer_rate=0.5
)


def point_model() -> FewShotModel:
    config = make_config(rank=4, alpha=8.0, first_layer=1, offset=0.0)
    model = FewShotModel(tiny_model(), tiny_tokenizer(), config)
    noise = 0.05 * torch.randn(model.prior.values.shape, generator=torch.Generator().manual_seed(1))
    model.prior = GlobalPosterior(config, model.prior.sites, model.prior.values + noise).without_noise()
    return model


def trained(settings: MetaSettings, folder: Path) -> torch.Tensor:
    list(meta_train(point_model(), tasks(), settings, folder))
    return trained_prior(point_model(), folder).values


def test_reptile_is_the_natural_rule_for_a_point(tmp_path: Path) -> None:
    reptile = trained(replace(POINT, outer="reptile"), tmp_path / "reptile")
    natural = trained(replace(POINT, outer="natural"), tmp_path / "natural")
    assert torch.equal(reptile, natural)
    assert not torch.equal(reptile, point_model().prior.values)


def test_structured_is_one_optimiser_over_all_tasks(tmp_path: Path) -> None:
    """The result is that of Reptile with step 1 and with moments kept across tasks."""
    structured = trained(replace(POINT, outer="structured"), tmp_path / "structured")
    steps = replace(POINT, outer="reptile", outer_rate=1.0, final_outer_rate=1.0, carry_moments=True)
    torch.testing.assert_close(structured, trained(steps, tmp_path / "reptile"), atol=1e-6, rtol=1e-5)


def test_first_order_maml_steps_along_the_querys_gradient_at_phi(tmp_path: Path) -> None:
    """With an inner learning rate of 0, phi is theta, and the step is the first of AdamW.

    That step is the rate in every coordinate, against the sign of the gradient.
    """
    inner = replace(POINT.inner, learning_rate=0.0)
    settings = replace(
        POINT, outer="fomaml", visits=1, inner=inner, query=True, outer_rate=1e-3, average_from=0.0
    )
    model = point_model()
    (metrics,) = meta_train(model, tasks()[:1], settings, tmp_path)
    theta = trained_prior(model, tmp_path)
    move = theta.values - model.prior.values
    assert float(move.abs().max()) == pytest.approx(1e-3, rel=1e-2)
    queries = [Query(example.input, LABELS) for example in tasks()[0].train]

    def loss(prior: GlobalPosterior) -> float:
        found = model.predict(TaskPosterior.start(prior), queries, samples=0)
        return -sum(
            math.log(f.predictive.probabilities[LABELS.index(e.output)])
            for f, e in zip(found, tasks()[0].train, strict=True)
        )

    # The query is part of these examples, so a small step along its gradient lowers their loss.
    assert loss(theta) < loss(model.prior)
    assert metrics["query_nll"] > 0


def test_rules_refuse_what_they_cannot_use(make_model: Callable[..., FewShotModel], tmp_path: Path) -> None:
    for settings, model, reason in (
        (replace(POINT, outer="reptile"), make_model(), "without noise"),
        (replace(SETTINGS, outer="fomaml"), point_model(), "no KL"),
        (replace(POINT, outer="reptile", query=True), point_model(), "no gradient on a query"),
        (replace(SETTINGS, query=True), make_model(), "no gradient on a query"),
    ):
        with pytest.raises(AbmllError, match=reason):
            next(meta_train(model, tasks(), settings, tmp_path))


# ---- settings ------------------------------------------------------------------------------------


def test_a_query_is_of_examples_that_the_inner_steps_did_not_see() -> None:
    model, task = point_model(), tasks()[0]
    pool = fitting_examples(model.encoder, task, 8, 384, seed=3)
    # They are drawn without replacement, so inner steps do not see the last ones.
    assert len({example.prompt.prompt for example in pool}) == 8


def test_examples_are_drawn_balanced_or_as_the_task_has_them() -> None:
    rare = tuple(Example(f"text {i}", "yes" if i < 24 else "no", ("yes", "no")) for i in range(240))
    task, encoder = Task("t", rare, ()), point_model().encoder

    def drawn(balanced: bool) -> int:
        found = fitting_examples(encoder, task, 16, 384, seed=3, balanced=balanced)
        return sum(example.label == 0 for example in found)

    assert 5 <= drawn(balanced=True) <= 11  # the first 16 of 48, half of them rare
    assert drawn(balanced=False) < 5


def test_the_likelihood_of_tokens_takes_every_example_as_free_text() -> None:
    model, task = point_model(), tasks()[0]
    options, tokens = (
        fitting_examples(model.encoder, task, 8, 384, seed=3, likelihood=likelihood)
        for likelihood in ("options", "tokens")
    )
    labels = [example.prompt.continuations[example.label] for example in options]
    assert [example.prompt.continuations for example in tokens] == [
        ((*label, model.encoder.tokenizer.eos_token_id),) for label in labels
    ]


def test_a_query_changes_what_adamw_follows(make_model: Callable[..., FewShotModel], tmp_path: Path) -> None:
    settings = replace(SETTINGS, outer="adamw", outer_rate=1e-3, prior_beta=1e-6, visits=2)
    plain = list(meta_train(make_model(), tasks(), settings, tmp_path / "plain"))
    query = list(meta_train(make_model(), tasks(), replace(settings, query=True), tmp_path / "query"))
    assert "query_nll" not in plain[0]
    assert query[0]["query_nll"] > 0
    assert query[0]["kl"] > 0


def test_shuffled_options_are_shuffled_where_they_are_shown() -> None:
    example = Example("Which? \n (A) red (B) blue (C) green", "blue", ("red", "blue", "green"))
    seen = {shuffle_options(example, random.Random(seed)) for seed in range(40)}
    assert len(seen) == 6
    for other in seen:
        assert other.output == "blue"
        assert other.input == f"Which? \n {listed(other.options)}"
        assert sorted(other.options) == sorted(example.options)
    free = Example("in", "out")
    assert shuffle_options(free, random.Random(0)) == free
    label = Example("a film", "bad", ("good", "bad"))
    assert {shuffle_options(label, random.Random(seed)).input for seed in range(9)} == {"a film"}


def test_shuffling_keeps_the_label_and_the_order_of_options_does_not_matter(tmp_path: Path) -> None:
    """The input does not list the options, so the loss and theta are equal up to rounding."""
    plain = trained(replace(POINT, outer="reptile", visits=3), tmp_path / "plain")
    shuffled = trained(replace(POINT, outer="reptile", visits=3, shuffle_options=True), tmp_path / "shuffled")
    torch.testing.assert_close(plain, shuffled, atol=2e-3, rtol=0)


def test_templates_take_turns() -> None:
    encoder = point_model().encoder
    other = PromptTemplate(before_input="Text: ")
    chosen = [choose_encoder(encoder, (other,), seed).template for seed in range(200)]
    assert 70 < chosen.count(other) < 130
    assert choose_encoder(encoder, (), 1) is encoder
    assert choose_encoder(encoder, (other,), 5).template == chosen[5]


def test_ema_is_the_recursion_over_the_visited_thetas(tmp_path: Path) -> None:
    without = trained(replace(POINT, outer="reptile", visits=4), tmp_path / "without")
    settings = replace(POINT, outer="reptile", visits=4, checkpoint_every=1, ema=0.8)
    expected: torch.Tensor | None = None
    for _ in meta_train(point_model(), tasks(), settings, tmp_path / "ema"):
        state = MetaState.load(tmp_path / "ema" / "checkpoint.safetensors")
        expected = state.theta if expected is None else 0.8 * expected + 0.2 * state.theta
        torch.testing.assert_close(state.result(), expected)
    assert torch.equal(state.theta, without)  # averaging does not touch theta itself


def test_a_run_from_before_a_setting_existed_goes_on(
    make_model: Callable[..., FewShotModel], tmp_path: Path
) -> None:
    next(meta_train(make_model(), tasks(), SETTINGS, tmp_path))
    path = tmp_path / "settings.json"
    record = json.loads(path.read_text())
    for name in ("query", "shuffle_options", "templates", "ema"):
        del record["settings"][name]
    path.write_text(json.dumps(record))
    assert len(list(meta_train(make_model(), tasks(), SETTINGS, tmp_path))) > 0
    path.write_text(json.dumps(record))
    with pytest.raises(AbmllError, match="other settings"):
        next(meta_train(make_model(), tasks(), replace(SETTINGS, ema=0.9), tmp_path))
