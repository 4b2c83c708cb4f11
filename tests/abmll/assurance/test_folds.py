"""Folds cover what can be held out, and are as equal as can be."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abmll.assurance.folds import FOLDS, LEAVE_ONE_OUT, HeldOutAnswer, held_out_answers, make_folds
from abmll.prediction.run import Prediction
from abmll.prediction.uncertainty import Predictive, Uncertainty
from abmll.text.questions import Case, Question, examples_of
from abmll.text.tasks import Example, check_support, question_key

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


# ---- several questions

TOPIC = Question("topic", "choice", "What is it about?", OPTIONS)
URGENT = Question("urgent", "predicate", "Is it urgent?", ("yes", "no"))
ANSWERS = st.fixed_dictionaries(
    {}, optional={"topic": st.sampled_from([*OPTIONS, None]), "urgent": st.sampled_from(["yes", "no", None])}
)


@given(
    cases=st.lists(st.tuples(st.integers(0, 9), ANSWERS), min_size=2, max_size=24),
    count=st.none() | st.integers(2, 30),
)
def test_whole_cases_are_held_out_and_every_question_keeps_two_labels(
    cases: list[tuple[int, dict[str, str | None]]], count: int | None
) -> None:
    support = examples_of([TOPIC, URGENT], [Case(f"text {number}", answers) for number, answers in cases])
    if len({question_key(example) for example in support}) < 2:
        return
    folds = make_folds(support, count)
    assert folds == make_folds(list(support), count)
    held_out = [i for fold in folds for i in fold.held_out]
    assert len(held_out) == len(set(held_out))
    for fold in folds:
        assert {support[i].input for i in fold.held_out}.isdisjoint(support[i].input for i in fold.kept)
        for i in range(len(support)):
            same = [j for j in fold.kept if question_key(support[j]) == question_key(support[i])]
            shown, all_ = ({support[j].output for j in of} for of in (same, _of_question(support, i)))
            gone = support[i].input in {support[j].input for j in fold.held_out}
            assert (i in fold.held_out) == (gone and len(shown) >= min(2, len(all_)))


def _of_question(support: list[Example], i: int) -> list[int]:
    return [j for j, example in enumerate(support) if question_key(example) == question_key(support[i])]


def test_twelve_cases_of_two_questions_by_hand() -> None:
    cases = [Case(str(i), {"topic": OPTIONS[i % 3], "urgent": "yes" if i < 6 else None}) for i in range(12)]
    support = examples_of([TOPIC, URGENT], cases)
    folds = make_folds(support, 3)
    of_cases = [sorted({i // 2 for i in fold.held_out}) for fold in folds]
    assert of_cases == [[0, 5, 7, 9], [1, 3, 8, 10], [2, 4, 6, 11]]
    for fold in folds:
        labels = Counter(support[i].output for i in fold.held_out)
        assert labels["yes"] == labels["cannot tell"] == 2
        assert {labels[option] for option in OPTIONS} == {1, 2}
    assert [len(fold.held_out) for fold in make_folds(support)] == [2] * 12


def test_an_adapter_is_shown_the_question_of_a_query_alone() -> None:
    cases = [Case(str(i), {"topic": OPTIONS[i % 3], "urgent": "yes"}) for i in range(6)]
    support = examples_of([TOPIC, URGENT], cases)
    (fold, *_) = make_folds(support, 3)
    shown = fold.demonstrations(support, URGENT.query("new"))
    assert {example.instruction for example in shown} == {"Is it urgent?"}
    assert len(shown) == len(fold.kept) / 2


def test_what_the_input_does_not_tell_has_no_label_among_the_probabilities() -> None:
    support = examples_of([URGENT], [Case("x", {"urgent": None}), Case("y", {"urgent": "no"})])
    found = Predictive(("yes", "no"), (0.3, 0.7), (0.0, 0.0), Uncertainty(0.6, 0.6, 0.0, 0.0), 8)
    neither, no = held_out_answers(support, [0, 1], [Prediction(found, 3, 3, answerable=0.4)] * 2)
    assert (neither.tellable, neither.correct, neither.answerable) == (False, False, 0.4)
    assert (no.tellable, no.correct, no.label) == (True, True, 1)
