"""Folds cover what can be held out, and are as equal as can be."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abmll.assurance.folds import FOLDS, LEAVE_ONE_OUT, HeldOutAnswer, make_folds
from abmll.text.tasks import Example, check_support

OPTIONS = ("a", "b", "c")


def examples(labels: str) -> list[Example]:
    return [Example(f"text {i}", label, OPTIONS) for i, label in enumerate(labels)]


@given(labels=st.text("abc", min_size=1, max_size=40), count=st.none() | st.integers(2, 50))
def test_folds_part_the_support_and_every_rest_can_be_adapted_to(labels: str, count: int | None) -> None:
    support = examples(labels)
    folds = make_folds(support, count)
    held_out = [i for fold in folds for i in fold.held_out]
    assert len(held_out) == len(set(held_out))
    for fold in folds:
        assert sorted((*fold.held_out, *fold.kept)) == list(range(len(support)))
        check_support(fold.support(support))
    if min(Counter(labels).values()) > 1 and len(set(labels)) > 1:
        assert sorted(held_out) == list(range(len(support)))


@given(labels=st.text("abc", min_size=17, max_size=60))
def test_folds_are_as_equal_in_size_and_labels_as_can_be(labels: str) -> None:
    support = examples(labels)
    folds = make_folds(support, 4)
    if min(Counter(labels).get(option, 0) for option in OPTIONS) < 4:
        return
    sizes = [len(fold.held_out) for fold in folds]
    assert max(sizes) - min(sizes) <= 1
    for option in OPTIONS:
        counts = [sum(support[i].output == option for i in fold.held_out) for fold in folds]
        assert max(counts) - min(counts) <= 1


def test_small_supports_leave_one_out_and_larger_ones_have_folds() -> None:
    assert [fold.held_out for fold in make_folds(examples("ab" * 8))] != []
    assert {len(fold.held_out) for fold in make_folds(examples("ab" * (LEAVE_ONE_OUT // 2)))} == {1}
    assert len(make_folds(examples("ab" * LEAVE_ONE_OUT))) == FOLDS


@pytest.mark.parametrize(
    ("labels", "held_out"),
    [("a", []), ("ab", [0, 1]), ("aab", [0, 1]), ("aabb", [0, 1, 2, 3]), ("abc", [0, 1, 2])],
)
def test_what_leaves_one_class_only_is_not_held_out(labels: str, held_out: list[int]) -> None:
    assert sorted(i for fold in make_folds(examples(labels)) for i in fold.held_out) == held_out


def test_folds_repeat() -> None:
    support = examples("abcab" * 5)
    assert make_folds(support) == make_folds(list(support))


def test_a_held_out_answer() -> None:
    row = HeldOutAnswer(0, (0.2, 0.5, 0.3), 2)
    assert (row.answer, row.correct) == (1, False)
    assert row.nll == pytest.approx(1.2039728)
    assert HeldOutAnswer(0, (1.0, 0.0), 1).nll == pytest.approx(27.631021)
