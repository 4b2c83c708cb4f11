"""Prompts of questions: the input's tokens first, alike for all questions, and what is scored."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from abmll.errors import OptionsError, PromptTooLongError, SupportError
from abmll.text.prompting import PromptEncoder, PromptTemplate
from abmll.text.questions import Case, Question, TypedQuestion, check_question, examples_of
from abmll.text.tasks import CANNOT_TELL, Example, Query, without_listed_options
from tests.tiny import tiny_tokenizer

TEMPLATE = PromptTemplate(bare=True, score="pmi")
ENCODER = PromptEncoder(tiny_tokenizer(), TEMPLATE, 256)
TOPIC = Question("topic", "choice", "What is it about?", ("repair", "order"), ("it is broken", ""))
URGENT = Question("urgent", "predicate", "Is it urgent?", ("yes", "no"), declinable=False)


def text_of(ids: tuple[int, ...]) -> str:
    return str(ENCODER.tokenizer.decode(ids))


def test_the_instruction_is_behind_the_input_and_in_front_of_the_answer() -> None:
    prompt = ENCODER.encode(TOPIC.query("the film was dull"))
    assert text_of(prompt.prompt) == "the film was dull\nWhat is it about?\nAnswer:"
    assert text_of(prompt.question) == "\nWhat is it about?\nAnswer:"
    assert (
        prompt.prompt[: prompt.input_tokens]
        == ENCODER.encode(URGENT.query("the film was dull")).prompt[: prompt.input_tokens]
    )
    assert [text_of(ids) for ids in prompt.continuations] == [" repair", " order", f" {CANNOT_TELL}"]


def test_options_are_compared_with_the_question_without_input() -> None:
    prompt = ENCODER.encode(TOPIC.query("the film was dull"))
    assert prompt.neutral == prompt.question
    plain = ENCODER.encode(Query("the film was dull", ("repair", "order")))
    assert (text_of(plain.neutral), plain.question) == ("\nAnswer:", ())


def test_a_description_is_scored_where_the_template_says_so() -> None:
    described = PromptEncoder(ENCODER.tokenizer, replace(TEMPLATE, described="both"), 256)
    prompt = described.encode(TOPIC.query("x"))
    assert [text_of(ids) for ids in prompt.continuations] == [
        " repair: it is broken",
        " order",
        f" {CANNOT_TELL}",
    ]
    alone = PromptEncoder(ENCODER.tokenizer, replace(TEMPLATE, described="description"), 256)
    found = alone.encode(TOPIC.query("x")).continuations
    assert [text_of(ids) for ids in found] == [" it is broken", " order", f" {CANNOT_TELL}"]
    assert prompt.options == ("repair", "order", CANNOT_TELL)
    meanings = ("repair: it is broken", "order", CANNOT_TELL)
    assert prompt.meanings == ENCODER.encode(TOPIC.query("x")).meanings == meanings


def test_the_name_of_a_question_reaches_no_prompt() -> None:
    assert ENCODER.encode(TOPIC.query("x")) == ENCODER.encode(replace(TOPIC, name="other").query("x"))


def test_a_long_input_is_cut_and_its_question_stays() -> None:
    query = URGENT.query("dull " * 300)
    with pytest.raises(PromptTooLongError):
        ENCODER.encode(query)
    cut = ENCODER.encode(query, truncate=True)
    assert text_of(cut.prompt).endswith("dul\nIs it urgent?\nAnswer:")
    assert cut.tokens == 256


def test_free_text_has_an_instruction_too() -> None:
    prompt = ENCODER.encode_example(Example("France", "Paris", instruction="Name the capital."))
    assert text_of(prompt.prompt) == "France\nName the capital.\nAnswer:"


def test_a_listed_option_is_not_shown_also_where_the_question_may_be_declined() -> None:
    listed = Query("Which? (A) red (B) blue", ("red", "blue", CANNOT_TELL), declinable=True)
    assert without_listed_options(listed) == "Which?"


def test_templates_of_before_keep_their_record() -> None:
    assert TEMPLATE.to_json() == {
        "before_input": "", "after_input": "\nAnswer:", "before_output": " ", "bare": True, "score": "pmi",
    }  # fmt: skip
    described = replace(TEMPLATE, described="both")
    assert PromptTemplate.from_json(described.to_json()) == described


def test_an_example_reads_what_it_wrote() -> None:
    (asked,) = examples_of([TOPIC], [Case("x", {"topic": None})])
    plain = Example("x", "a", ("a", "b"))
    assert [Example.from_json(example.to_json()) for example in (asked, plain)] == [asked, plain]
    assert plain.to_json() == {"input": "x", "output": "a", "options": ["a", "b"]}


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (replace(TOPIC, instruction=" \n"), "instruction is empty"),
        (replace(TOPIC, options=("one",), descriptions=()), "at least two"),
        (replace(TOPIC, options=("one", "one")), "repeated"),
        (replace(TOPIC, descriptions=("one",)), "not as many"),
        (replace(TOPIC, options=("one", CANNOT_TELL)), "stands for no answer"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(question: Question, says: str) -> None:
    with pytest.raises(OptionsError, match=says):
        check_question(question)


def test_answers_are_of_known_questions_and_of_their_options() -> None:
    with pytest.raises(SupportError, match="no question 'colour'"):
        examples_of([TOPIC], [Case("x", {"colour": "red"})])
    with pytest.raises(OptionsError, match="'invoice' is not among"):
        examples_of([TOPIC], [Case("x", {"topic": "invoice"})])


@pytest.mark.parametrize(
    "typed",
    [
        TypedQuestion(URGENT, (True, False)),
        TypedQuestion(TOPIC, ("repair", True)),
        TypedQuestion(Question("anger", "score", "How angry?", ("calm", "cross")), (0, 1)),
    ],
)
def test_a_typed_question_is_read_from_its_json_as_it_was(typed: TypedQuestion) -> None:
    found = TypedQuestion.from_json(json.loads(json.dumps(typed.to_json())))
    assert found == typed
    assert [type(value) for value in found.values] == [type(value) for value in typed.values]


def test_an_adapter_knows_a_question_by_what_it_asks_and_its_options() -> None:
    assert replace(TOPIC, name="other", options=("order", "repair"), descriptions=()).key == TOPIC.key
    others = [replace(TOPIC, instruction="?"), replace(TOPIC, declinable=False), URGENT]
    assert len({TOPIC.key, *(other.key for other in others)}) == 4
