"""Checks and the draw of a support set."""

from collections import Counter

import pytest

from abmll.errors import OptionsError
from abmll.text.draws import draw_support, draw_uniformly
from abmll.text.tasks import Example, check_options, contradictions, spelt_otherwise, unlabelled_options

LABELS = ("a", "b", "c")


def test_support_is_balanced_repeatable_and_without_replacement() -> None:
    pool = [Example(f"text {i}", "a" if i < 80 else LABELS[1 + i % 2], LABELS) for i in range(100)]
    drawn = draw_support(pool, 12, seed=13)
    assert Counter(example.output for example in drawn) == {"a": 4, "b": 4, "c": 4}
    assert len(set(drawn)) == 12
    assert drawn == draw_support(pool, 12, seed=13) != draw_support(pool, 12, seed=21)
    sizes = Counter(example.output for example in draw_support(pool, 50, seed=13))
    assert sizes == {"a": 30, "b": 10, "c": 10}
    assert len(draw_support(pool, 500, seed=1)) == 100


def test_a_uniform_draw_has_classes_in_the_pools_proportions() -> None:
    pool = [Example(f"text {i}", "a" if i < 80 else "b", ("a", "b")) for i in range(100)]
    drawn = draw_uniformly(pool, 50, seed=13)
    assert len(set(drawn)) == 50
    assert drawn == draw_uniformly(pool, 50, seed=13) != draw_uniformly(pool, 50, seed=21)
    many = [example for seed in range(40) for example in draw_uniformly(pool, 10, seed)]
    assert 0.7 < Counter(example.output for example in many)["a"] / 400 < 0.9
    assert len(draw_uniformly(pool, 500, seed=1)) == 100
    assert all(len({e.output for e in draw_uniformly(pool, 2, seed)}) == 2 for seed in range(40))
    assert len(draw_uniformly(pool[:5], 3, seed=1)) == 3  # one class is all there is


def test_support_of_multiple_choice_and_free_text_is_a_plain_draw() -> None:
    choice = [Example(f"q{i}", f"x{i}", (f"x{i}", f"y{i}")) for i in range(20)]
    assert len(set(draw_support(choice, 7, seed=1))) == 7
    assert len(set(draw_support([Example(f"q{i}", "t") for i in range(20)], 7, seed=1))) == 7


def test_contradictions_are_inputs_with_two_outputs() -> None:
    rows = [Example("one", "a"), Example("two", "a"), Example("one", "b"), Example("two", "a")]
    assert contradictions(rows) == ["one"]


def test_outputs_to_different_questions_contradict_nothing() -> None:
    asked = [("a", ("a", "b")), ("c", ("c", "d"))]
    rows = [Example("one", output, options, "Which?") for output, options in asked]
    assert contradictions(rows) == []
    assert contradictions([*rows, Example("one", "d", ("d", "c"), "Which?")]) == ["one"]


@pytest.mark.parametrize(
    "options", [("late", "late "), ("x", "late", "\tlate"), ("late\u00a0", "late"), ("late\n", "late")]
)
def test_options_that_differ_by_white_space_are_both_shown(options: tuple[str, ...]) -> None:
    with pytest.raises(OptionsError, match="differ only by white space") as caught:
        check_options(options)
    assert all(repr(option) in str(caught.value) for option in options if option != "x")


@pytest.mark.parametrize(
    "options",
    [
        ("billing", "billing\u200b"),
        ("caf\u00e9", "cafe\u0301"),
        ("\u202ashipping\u202c", "shipping"),
        ("e\u00adtail", "etail"),
        ("bil\u00a0ling\ufeff", "bil ling"),
    ],
)
def test_options_that_look_the_same_are_shown_by_their_codes(options: tuple[str, ...]) -> None:
    with pytest.raises(OptionsError, match="look the same: write both alike") as caught:
        check_options(options)
    assert all(ascii(option) in str(caught.value) for option in options)


def test_options_that_look_different_are() -> None:
    check_options(
        ("\U0001f469\u200d\U0001f467", "\U0001f469\U0001f467", "resume", "r\u00e9sum\u00e9", "Resume")
    )


def test_an_option_that_is_there_twice_is_called_repeated() -> None:
    with pytest.raises(OptionsError, match="options are repeated: 'late '"):
        check_options(("late ", "early", "late "))


def test_options_that_no_example_is_labelled_with() -> None:
    options = ("billing", "shipping", "other")
    examples = [Example(str(i), label, options) for i, label in enumerate(["shipping"] * 3)]
    assert unlabelled_options(examples) == ("billing", "other")
    assert unlabelled_options([*examples, Example("x", "other", options[::-1])]) == ("billing",)
    assert unlabelled_options([Example("x", "y")]) == ()
    assert unlabelled_options([*examples, Example("x", "a", ("a", "b"))]) == ()  # multiple choice


@pytest.mark.parametrize("asked", ["Billing", "BILLING", " bILLING", "\uff42illing"])
def test_an_option_that_only_reads_like_a_known_one_is_found(asked: str) -> None:
    assert spelt_otherwise([asked, "not related"], ("billing", "not related")) == {asked: "billing"}


def test_options_that_read_otherwise_or_are_known_are_not_found() -> None:
    known = ("billing", "Billing", "not related", "A", "A-")
    assert spelt_otherwise(["billing", "Billing ", "refund", "A+", "A-"], known) == {}
    assert spelt_otherwise(["BILLING", "Not  Related", "a-"], known) == {
        "BILLING": "billing",
        "Not  Related": "not related",
        "a-": "A-",
    }
    assert spelt_otherwise([], known) == spelt_otherwise(["billing"], []) == {}
