"""Support sizes, episodes, and the check that no test task was trained on."""

import pickle

import pytest

from abmll.errors import AbmllError
from abmll.text.draws import draw_support, draw_uniformly
from abmll.text.tasks import Example, Task
from lab.evaluation.protocol import (
    LeakError,
    can_be_tested,
    check_unseen,
    classes_of,
    draw_shots,
    episode,
    neighbours,
    plan,
    related,
)

OPTIONS = ("yes", "no", "perhaps")
POOL = tuple(Example(f"text {i}", OPTIONS[i % 3], OPTIONS) for i in range(90))
CHOICE = tuple(Example(f"q {i}", f"a{i}", (f"a{i}", f"b{i}")) for i in range(40))
ABOUT = {"a": {"shares_inputs_with": {"b": 7}}, "b": {}, "c": {}}


def test_k_is_of_all_or_of_each_class() -> None:
    assert len(draw_shots("16", POOL, 13)) == 16
    assert draw_shots("16", POOL, 13) == draw_uniformly(POOL, 16, 13)
    assert draw_shots("16 balanced", POOL, 13) == draw_support(POOL, 16, 13)
    # Without fixed classes the support has 32 examples, as in CrossFit.
    assert len(draw_shots("16 per class", CHOICE, 13)) == 32
    drawn = draw_shots("16 per class", POOL, 13)
    assert sorted(example.output for example in drawn) == sorted(OPTIONS * 16)
    for wrong in ("0", "many", "16 per task", "-4"):
        with pytest.raises(AbmllError, match="shots"):
            draw_shots(wrong, POOL, 13)


@pytest.mark.parametrize(
    ("train", "pair"),
    [("a", ("a", "a")), ("b", ("a", "b"))],
    ids=["the task itself", "one with the same sentences"],
)
def test_a_leak_is_an_error_that_names_the_pair(train: str, pair: tuple[str, str]) -> None:
    with pytest.raises(LeakError, match="my-theta") as caught:
        check_unseen("my-theta", {train, "c"}, ["a"], ABOUT)
    assert caught.value.pairs == (pair,)
    assert train in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).pairs == (pair,)


def test_sharing_is_mutual_and_by_origin() -> None:
    check_unseen("theta", {"c"}, ["a", "b"], ABOUT)
    assert related("b", "a", ABOUT)  # only the record of `a` has the pair
    assert related("yelp_polarity", "yelp_review_full", {})
    assert not related("a", "c", ABOUT)


def test_the_plan_goes_method_by_method() -> None:
    cells = plan(["x", "y"], ["a", "b"], ["4", "16"], [13, 21])
    assert len(cells) == len(set(cells)) == 16
    assert [cell.method for cell in cells] == ["x"] * 8 + ["y"] * 8
    assert len({cell.path for cell in cells}) == 16


def test_an_episode_is_the_facades_support_and_the_first_items() -> None:
    task, other = Task("t", POOL[:60], POOL[60:]), Task("o", CHOICE[:30], CHOICE[30:])
    found = episode(task, "16", 21, items=5, foreign=other, foreign_items=3)
    assert found.support == draw_uniformly(task.train, 16, 21)
    assert [query.input for query in found.queries] == [f"text {i}" for i in range(60, 65)]
    assert [OPTIONS[label] for label in found.labels] == [example.output for example in POOL[60:65]]
    assert [(query.input, query.options) for query in found.foreign] == [
        (f"q {i}", OPTIONS) for i in range(30, 33)
    ]
    # The options of `other` differ from item to item, so foreign inputs get none.
    assert episode(other, "4", 21, items=5, foreign=task, foreign_items=3).foreign == ()
    with pytest.raises(AbmllError, match="no options"):
        episode(Task("free", (Example("in", "out"),), (Example("in", "out"),)), "1", 0, items=1)


def test_foreign_items_come_from_a_task_without_shared_sentences() -> None:
    tasks = [Task(name, POOL, POOL[:1]) for name in ("a", "b", "c")]
    assert neighbours(tasks, ABOUT) == {"a": "c", "b": "c", "c": "a"}
    assert neighbours(tasks[:2], ABOUT) == {}
    assert classes_of(tasks[0]) == OPTIONS
    assert classes_of(Task("choice", CHOICE, ())) == ()
    assert can_be_tested(tasks[0])
    assert not can_be_tested(Task("free", (Example("i", "o"),), (Example("i", "o"),)))
