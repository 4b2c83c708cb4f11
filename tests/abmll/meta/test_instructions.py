"""Visits that show instructions: what is asked of whom, how often, and the same after a restart."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from abmll.adaptation.settings import AdaptSettings
from abmll.errors import AbmllError
from abmll.meta.instructions import (
    DerivedQuestion,
    Showing,
    StatementQuestion,
    TaskInstructions,
    draw_question,
    draw_questions,
    own_question,
    strangers,
)
from abmll.meta.settings import MetaSettings
from abmll.meta.state import MetaState
from abmll.meta.train import meta_train
from abmll.model import FewShotModel
from abmll.text.prompting import PromptTemplate
from abmll.text.tasks import CANNOT_TELL, Example, Task
from tests.tiny import make_config, tiny_model, tiny_tokenizer

STARS = ("bad", "fine", "great")
FILMS = TaskInstructions(
    ("How good is the film?", "Rate it."),
    {"bad": "nobody likes it", "great": "all like it"},
    (
        DerivedQuestion("predicate", ("Is it bad?",), {"yes": ("bad",), "no": ("fine", "great")}),
        DerivedQuestion("choice", ("Worth it?",), {"go": ("fine", "great"), "stay": ("bad",)}),
    ),
    subject="film",
)
PAIRS = TaskInstructions(
    ("Does the one follow from the other?",),
    statement=StatementQuestion(
        r"premise: (?P<text>.*) hypothesis: (?P<statement>.*)", ("Is it true that {statement}",), ("follows",), ("not",)
    ),
    subject="pair",
)  # fmt: skip
PLAIN = TaskInstructions(("What is it?",))
ALL = {"films": FILMS, "pairs": PAIRS, "plain": PLAIN}
FILM = Example("dull. (A) bad (B) fine (C) great", "bad", STARS)
PAIR = Example("premise: it rains hypothesis: it is wet", "open", ("follows", "not", "open"))
ALWAYS = Showing(derived=1, statements=1, described=1, declinable=1)


def test_the_own_question_keeps_options_and_shows_the_input_without_their_list() -> None:
    plain, described = (own_question(FILMS, described=shown).ask(FILM) for shown in (False, True))
    assert plain == Example("dull.", "bad", STARS, "How good is the film?")
    assert described == replace(plain, descriptions=("nobody likes it", "", "all like it"))
    other = own_question(FILMS, 1).ask(FILM)
    assert other is not None
    assert other.instruction == "Rate it."
    with pytest.raises(AbmllError, match="no wording 2 of 2"):
        own_question(FILMS, 2)


def test_a_derived_question_has_its_own_options() -> None:
    found = set()
    for seed in range(40):
        asked = draw_question(FILMS, STARS, ALWAYS, random.Random(seed), declinable=False).ask(FILM)
        assert asked is not None
        found.add((asked.instruction, asked.output, asked.options))
    assert found == {("Is it bad?", "yes", ("yes", "no")), ("Worth it?", "stay", ("go", "stay"))}


def test_a_statement_is_asked_of_the_text_it_is_about() -> None:
    asked = draw_question(PAIRS, PAIR.options, ALWAYS, random.Random(1), declinable=True)
    assert asked.ask(PAIR) == Example(
        "it rains", CANNOT_TELL, ("yes", "no", CANNOT_TELL), "Is it true that it is wet", declinable=True
    )
    followed = asked.ask(replace(PAIR, output="follows"))
    assert followed is not None
    assert followed.output == "yes"
    # Without the option to decline there is no answer to what cannot be told.
    assert replace(asked, declinable=False).ask(PAIR) is None
    assert asked.ask(replace(PAIR, input="no pair")) is None


def test_strangers_have_another_subject() -> None:
    assert strangers("films", ALL) == ["pairs"]
    assert strangers("plain", ALL) == []


def test_what_strangers_ask_cannot_be_told() -> None:
    tasks = {"films": FILMS, "drugs": TaskInstructions(("Does it harm?",), subject="drug")}
    options = {"films": STARS, "drugs": ("related", "not related")}
    ask = draw_questions("films", tasks, options, replace(ALWAYS, strange=0.25), random.Random(3), most=1)
    asked = [example for _ in range(400) for example in ask(FILM)]
    strange = [example for example in asked if example.instruction == "Does it harm?"]
    assert {example.output for example in strange} == {CANNOT_TELL}
    assert 60 < len(strange) < 140
    assert len(asked) == 400
    assert all(example.declinable for example in asked)


def test_a_visit_asks_each_input_all_of_its_questions() -> None:
    showing, rng = replace(ALWAYS, derived=0.5, declinable=0), random.Random(5)
    counts = set()
    for _ in range(30):
        ask = draw_questions("films", {"films": FILMS}, {"films": STARS}, showing, rng, most=3)
        first, second = ask(FILM), ask(FILM)
        assert first == second
        counts.add(len(first))
    assert counts == {1, 2, 3}


def model() -> FewShotModel:
    template = PromptTemplate(described="both", score="pmi")
    return FewShotModel(tiny_model(), tiny_tokenizer(), make_config(), template=template)


def tasks() -> list[Task]:
    texts = [f"the film was {i} wonderful" for i in range(12)]
    films = tuple(Example(text, STARS[i % 3], STARS) for i, text in enumerate(texts))
    other = tuple(Example(f"story {i}", "ab"[i % 2], ("a", "b")) for i in range(12))
    return [Task("films", films, ()), Task("plain", other, ())]


SETTINGS = MetaSettings(
    visits=6,
    inner=AdaptSettings(steps=2, learning_rate=0.01, batch_size=4, beta=1e-6),
    checkpoint_every=2,
    showing=replace(ALWAYS, instructed=1, derived=0.5, mixed=0.5, mixed_tasks=2),
)


def test_a_resumed_run_that_shows_instructions_is_as_one_at_a_time(tmp_path: Path) -> None:
    whole = list(meta_train(model(), tasks(), SETTINGS, tmp_path / "whole", instructions=ALL))
    stopped = meta_train(model(), tasks(), SETTINGS, tmp_path / "stopped", instructions=ALL)
    for _ in range(3):
        next(stopped)
    stopped.close()
    rest = list(meta_train(model(), tasks(), SETTINGS, tmp_path / "stopped", instructions=ALL))
    assert [visit["losses"] for visit in rest] == [visit["losses"] for visit in whole[2:]]
    ends = [MetaState.load(tmp_path / name / "checkpoint.safetensors").theta for name in ("whole", "stopped")]
    assert torch.equal(*ends)


def test_a_run_that_shows_instructions_needs_those_of_every_task(tmp_path: Path) -> None:
    with pytest.raises(AbmllError, match="no instructions for the tasks plain"):
        next(meta_train(model(), tasks(), SETTINGS, tmp_path, instructions={"films": FILMS}))
