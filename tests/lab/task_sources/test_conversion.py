"""Rows of sources become examples by the rules of the collection."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from abmll.errors import AbmllError
from abmll.text.tasks import Example
from lab.task_sources.conversion import MAX_TEST, MAX_TRAIN, task_examples
from lab.task_sources.manifest import Better, Choice, FreeText, Labels, Sources, TaskSource
from lab.training.configuration import TrainingConfig

ROOT = Path(__file__).parents[3]


def source(output: Any, **values: Any) -> TaskSource:
    standard = {"repository": "a/b", "revision": "main", "train": ("t",), "test": ("e",), "licence": "?"}
    return TaskSource(**{**standard, "input": "{text}", "output": output, **values})


def both(found: TaskSource, rows: list[dict[str, Any]]) -> list[Example]:
    """Return the examples of `rows`, which are training rows; one other row is the test."""
    last = {**rows[-1], "text": "the only test input"}
    return task_examples("task", found, rows, [last])[0]


def test_a_class_is_named_by_its_number_or_by_its_text() -> None:
    by_number = source(Labels("label", ("no", "yes")))
    rows = [{"text": " A \n b ", "label": 1}, {"text": "unlabelled", "label": -1}, {"text": "c", "label": 0}]
    found = both(by_number, rows)
    assert {(e.input, e.output) for e in found} == {("A b", "yes"), ("c", "no")}
    assert {e.options for e in found} == {found[0].options}
    assert set(found[0].options) == {"no", "yes"}
    by_text = source(Labels("label", {"entails": "entailment", "neutral": "neutral"}))
    assert both(by_text, [{"text": "a", "label": "entails"}])[0].output == "entailment"


def test_columns_are_put_into_the_input_and_other_rows_left_out() -> None:
    pair = source(
        Labels("label", ("no", "yes")), input="one: {text} [SEP] two: {other}", only={"s": ("x", "1")}
    )
    rows = [
        {"text": "a{b}", "other": "c", "label": 0, "s": "x"},
        {"text": "d", "other": "e", "label": 0, "s": "y"},
        {"text": "f", "other": "g", "label": 1, "s": 1},
    ]
    assert {e.input for e in both(pair, rows)} == {"one: a{b} [SEP] two: c", "one: f [SEP] two: g"}


@pytest.mark.parametrize("options", ["choices", ("sol1", "sol2")])
def test_a_choice_shows_its_options_and_answers_with_the_text(options: Any) -> None:
    row = {"text": "Which?", "choices": ["red ", "blue"], "sol1": "red", "sol2": "blue", "answer": "1"}
    unanswered = {**row, "text": "None?", "answer": -1}
    twice = {**row, "text": "Twice?", "choices": ["red", "red"], "sol2": "red"}
    found = both(source(Choice("answer", options)), [row, unanswered, twice, row])
    assert found == [Example("Which? \n (A) red (B) blue", "blue", ("red", "blue"))]


def test_free_text_is_a_text_or_the_only_one_of_a_list() -> None:
    rows = [
        {"text": "b", "answers": ["one", "two"]},
        {"text": "c", "answers": "plain  text"},
        {"text": "d", "answers": [" "]},
        {"text": "e", "answers": None},
        {"text": "a", "answers": ["one"]},
    ]
    found = both(source(FreeText("answers")), rows)
    assert {(e.input, e.output, e.options) for e in found} == {("a", "one", ()), ("c", "plain text", ())}


def test_the_better_of_two_texts_is_the_first_as_often_as_the_second() -> None:
    rows = [{"good": f"good {n}", "bad": f"bad {n}", "text": ""} for n in range(400)]
    template = "sentence 1: {first} [SEP] sentence 2: {second}"
    found = task_examples("task", source(Better("good", "bad"), input=template, test=()), rows, [])
    assert [len(side) for side in found] == [267, 133]
    for example in (*found[0], *found[1]):
        first, second = example.input.removeprefix("sentence 1: ").split(" [SEP] sentence 2: ")
        assert (first if example.output == "sentence 1" else second).startswith("good")
    counts = Counter(example.output for example in found[0])
    assert 90 < counts["sentence 1"] < 177  # 5 standard deviations of a fair coin around 133.5
    assert found == task_examples("task", source(Better("good", "bad"), input=template, test=()), rows, [])


def test_repeats_conflicts_long_inputs_and_test_inputs_are_left_out() -> None:
    labels = source(Labels("label", ("no", "yes")))
    train = [
        {"text": "Same, input!", "label": 0},
        {"text": "same input", "label": 0},
        {"text": "Conflict", "label": 0},
        {"text": "conflict.", "label": 1},
        {"text": "x" * 1001, "label": 1},
        {"text": "In the TEST", "label": 1},
        {"text": "kept", "label": 1},
    ]
    trained, tested = task_examples("task", labels, train, [{"text": "in the test", "label": 1}])
    assert sorted(e.input for e in trained) == ["Same, input!", "kept"]
    assert [e.input for e in tested] == ["in the test"]


def test_both_sides_are_bounded_and_disjoint() -> None:
    rows = [{"text": f"input {n}", "label": n % 2} for n in range(3000)]
    trained, tested = task_examples("task", source(Labels("label", ("no", "yes")), test=()), rows, [])
    assert (len(trained), len(tested)) == (MAX_TRAIN, MAX_TEST)
    assert not {e.input for e in trained} & {e.input for e in tested}
    assert [e.input for e in trained] != sorted(e.input for e in trained)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "task task, train row 1: no column 'label'; its columns are text"),
        ({"text": "a", "label": 2}, "train row 1: label 2 is no number from 0 to 1"),
        ({"text": "a", "label": "maybe"}, "train row 1: invalid literal"),
        ({"text": "x" * 1001, "label": 1}, "no training example is left"),
    ],
)
def test_a_row_that_is_not_as_the_source_says_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(AbmllError, match=message):
        task_examples("task", source(Labels("label", ("no", "yes"))), [row], [{"text": "t", "label": 0}])


# ---- what ships ----------------------------------------------------------------------------------


def test_every_training_task_has_a_source_or_a_reason_why_not() -> None:
    trained = TrainingConfig.read(ROOT / "configs/all_tasks.yaml").data.tasks
    sources = Sources.read()
    assert sorted([*sources.tasks, *sources.not_covered]) == sorted(trained)
    assert len(sources.tasks) == 28
    for name, reason in sources.not_covered.items():
        with pytest.raises(AbmllError, match=reason):
            sources.chosen([name])


def test_sources_are_pinned_to_commits_but_one() -> None:
    open_ones = [n for n, s in Sources.read().tasks.items() if len(s.revision) != 40]
    assert open_ones == ["sms_spam"]  # its tasks.json names the commit that was fetched


def test_a_manifest_with_a_wrong_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("tasks: {a: {repository: a/b, revison: main}}")
    with pytest.raises(AbmllError, match="revison"):
        Sources.read(tmp_path / "mine.yaml")
