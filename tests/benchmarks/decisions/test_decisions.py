"""The comparison of ways to answer many questions: arms, cells, measures, what a gate accepts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from abmll.adaptation.settings import AdaptSettings
from abmll.model import FewShotModel
from abmll.text.questions import Case, Question
from benchmarks.decisions import arms, tables
from benchmarks.decisions.arms import Answer, Answers, Cost
from benchmarks.decisions.cells import Cell, CellFile, Key
from benchmarks.decisions.collections import Decisions, read_own
from benchmarks.decisions.gates import SCORES, Outcomes, gated
from benchmarks.decisions.measures import measure
from benchmarks.decisions.summaries import Interval, by_question, difference, paired
from tests.tiny import make_config, tiny_model, tiny_tokenizer

GOOD = Question("good", "predicate", "Is it good?", ("yes", "no"))
TOPIC = Question("topic", "choice", "What is it about?", ("film", "story"))
CASES = (
    Case("the film was wonderful", {"good": "yes", "topic": "film"}),
    Case("a dull story", {"good": "no", "topic": "story"}),
    Case("Paris", {"good": None, "topic": "film"}),
    Case("great actors", {"good": "yes", "topic": "film"}),
)
SMALL = Decisions("small", (GOOD, TOPIC), CASES)


def model() -> FewShotModel:
    settings = AdaptSettings(steps=1, learning_rate=0.01, batch_size=4)
    return FewShotModel(tiny_model(), tiny_tokenizer(), make_config(), defaults=settings)


@pytest.mark.parametrize("arm", [arms.zero_shot, arms.one_adapter, arms.adapter_each, arms.in_context])
def test_each_arm_answers_every_question_about_every_input(arm: arms.Arm) -> None:
    cases, tested = SMALL.split(2, 2, 0)
    found = arm(model(), arms.Trial(SMALL.questions, cases, [case.input for case in tested], 0))
    assert [len(row) for row in found.rows] == [2, 2]
    for row in found.rows:
        for answer in row:
            assert sum(answer.probabilities) == pytest.approx(1, abs=1e-4)
            assert answer.answerable is not None
    assert found.answer.processor > 0
    assert (found.learn.processor > 0) == (arm in (arms.one_adapter, arms.adapter_each))


def test_an_adapter_of_one_question_is_the_same_in_both_arms() -> None:
    cases = [Case(case.input, {"topic": case.answers["topic"]}) for case in CASES[:3]]
    inputs = [CASES[3].input]
    trial = arms.Trial([TOPIC], cases, inputs, 3)
    one, each = arms.one_adapter(model(), trial), arms.adapter_each(model(), trial)
    assert one.rows == each.rows


def test_a_class_without_an_example_has_the_probability_of_add_one() -> None:
    (found,) = arms.from_classes(GOOD, 3, ["yes"], np.ones((1, 1)))
    assert found.answerable == pytest.approx(5 / 6)  # of six: 3 examples and 3 options
    assert found.probabilities == (pytest.approx(4 / 5), pytest.approx(1 / 5))


def test_measures_of_known_answers() -> None:
    answers = [
        Answer((0.75, 0.25), 0.9, 0.5, 0.1),
        Answer((0.75, 0.25), 0.8, 0.6, 0.1),
        Answer((0.5, 0.5), 0.1, 0.7, 0.2),
    ]
    found = measure(GOOD, ["yes", "no", None], answers)
    assert (found.accuracy, found.count) == (0.5, 2)
    assert found.nll == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    assert (found.answerable, found.typicality, found.information) == (1, 0, 1)
    unknown = measure(GOOD, ["yes", "no", "no"], answers)
    assert math.isnan(unknown.answerable)
    assert math.isnan(measure(GOOD, [None], answers[:1]).accuracy)


def cell(rows: Sequence[Sequence[Answer]], arm: str = tables.ONE, seed: int = 0) -> Cell:
    key = Key("small", arm, 1, len(rows), seed)
    return Cell(key, Answers([list(row) for row in rows], Cost(2.0, 1.0), Cost(4.0, 3.0)))


def answered(decisions: Decisions, tested: int, seed: int, probability: float = 0.75) -> list[list[Answer]]:
    """Return answers that are right wherever there is a right one, with some probability."""
    _, chosen = decisions.split(1, tested, seed)
    found = []
    for case in chosen:
        row = []
        for question in decisions.questions:
            label = case.answers[question.name]
            rest = (1 - probability) / (len(question.options) - 1)
            likely = question.options[0] if label is None else label
            shares = tuple(probability if option == likely else rest for option in question.options)
            row.append(Answer(shares, 0.2 if label is None else 0.95, 0.5, 0.05))
        found.append(row)
    return found


def test_cells_are_stored_and_a_line_that_was_cut_off_is_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "cells.jsonl"
    whole = cell(answered(SMALL, 3, 0))
    bare = replace(
        whole, key=whole.key._replace(seed=1), answers=replace(whole.answers, rows=[[Answer((1.0,))]])
    )
    for one in (whole, bare):
        CellFile(path).add(one)
    found = CellFile(path)
    assert found.of([whole.key, bare.key]) == [whole, bare]
    path.write_text(path.read_text("utf-8")[:-5], "utf-8")
    assert CellFile(path).of([whole.key, bare.key]) == [whole]


def test_values_are_by_question_and_differences_are_paired() -> None:
    right, wrong = cell(answered(SMALL, 3, 0)), cell(answered(SMALL, 3, 0, 0.25), tables.EACH)
    other = cell(answered(SMALL, 3, 7), seed=7)
    collections = {"small": SMALL}
    one, each = paired([right, other], [wrong])
    assert (one, each) == ([right], [wrong])
    values = [by_question(cells, collections, lambda found: found.accuracy) for cells in (one, each)]
    assert set(values[0].values()) == {1.0}
    found = difference(*values)
    assert (found.mean, found.low, found.high) == (1, 1, 1)
    assert str(Interval.of([math.nan])) == "-"


def _at(answer: Answer, confidence: float) -> tuple[float, ...]:
    rest = (1 - confidence) / (len(answer.probabilities) - 1)
    return tuple(confidence if p == max(answer.probabilities) else rest for p in answer.probabilities)


def test_a_gate_accepts_what_is_certain_and_nothing_without_an_answer() -> None:
    inbox = read_own("inbox")
    rows = answered(inbox, 40, 0)
    # Thresholds lie between confidences, so that equal ones would be accepted together or not at all.
    drawn = iter(np.random.default_rng(0).uniform(0.9, 0.99, 40 * 9))
    sure = [[replace(answer, probabilities=_at(answer, next(drawn))) for answer in row] for row in rows]
    perfect = cell(sure)
    by_both, by_confidence = (
        gated([Outcomes.of(perfect, inbox, SCORES[name])], 0.05)
        for name in ("confidence x answerable", "confidence")
    )
    tellable = Outcomes.of(perfect, inbox, SCORES["confidence"]).tellable.mean()
    assert 0.7 < tellable < 0.97
    assert by_both.certified == 1
    assert (by_both.error, by_both.untellable) == (0, 0)
    assert 0.6 < by_both.coverage < tellable + 0.05
    assert by_both.possible >= by_both.coverage
    # Confidence alone does not know what cannot be tellable.
    assert by_confidence.coverage < by_both.coverage


def test_the_page_has_every_arm_and_the_ratio_of_costs() -> None:
    rows = answered(SMALL, 3, 0)
    each = cell(rows, tables.EACH)
    each = replace(each, answers=replace(each.answers, learn=Cost(8, 8)))
    text = "\n".join(tables.sections([cell(rows), each], {"small": SMALL}))
    assert f"| {tables.ONE} | 1 | 1.000 (1.000 to 1.000) |" in text
    assert "| 1 | 0.000 (0.000 to 0.000) | 0.000 (0.000 to 0.000) | 0.125 | 1 | 0.364 |" in text
