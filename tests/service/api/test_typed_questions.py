"""Questions and cases of a wire, as the engine and the model get them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from abmll.errors import OptionsError
from abmll.prediction.settings import Thresholds
from abmll.text.questions import Question, TypedQuestion, examples_of
from abmll.text.tasks import CANNOT_TELL
from service import schemas
from service.api.decision_requests import DecisionBody, placed_errors
from service.api.typed_questions import (
    LabelledInput,
    cases_of,
    choice,
    option_texts,
    predicate,
    score,
)
from service.engine.requests import AdaptOverrides, AdaptRequest
from service.errors import InvalidOptionsError, ServiceError

URGENT = predicate("urgent", "Is it urgent?")
TEAM = choice("team", "Which team?", ["billing", "it"], ["Payments.", ""])
ANGER = score("anger", "How angry?", ["calm", "cross", "furious"], ["", "", ""])
FLAG = choice("flag", "Which?", ["true", True, False], ["", "", ""])
BASE = "fake-1b"


# ---- questions -----------------------------------------------------------------------------------


def test_questions_have_options_and_descriptions_in_order() -> None:
    assert URGENT.question == Question("urgent", "predicate", "Is it urgent?", ("yes", "no"))
    assert predicate("", "?", no="Never.").question.descriptions == ("", "Never.")
    assert TEAM.question == Question("team", "choice", "Which team?", ("billing", "it"), ("Payments.", ""))
    assert ANGER.question == Question("anger", "score", "How angry?", ("calm", "cross", "furious"))
    assert (URGENT.values, TEAM.values, ANGER.values) == ((True, False), ("billing", "it"), (0, 1, 2))


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ([True, False], ("true", "false")),
        (["true", True], ("true", "true (boolean)")),
        ([True, "true"], ("true (boolean)", "true")),
        ([False, " false", True], ("false (boolean)", " false", "true")),
        (["True", True], ("True", "true")),
    ],
)
def test_a_text_and_a_boolean_of_one_spelling_are_two_options(
    values: Sequence[str | bool], options: tuple[str, ...]
) -> None:
    assert option_texts(values) == options


@pytest.mark.parametrize(
    ("option", "declinable"),
    [("other", True), ("cannot tell", False), ("Cannot  tell", False), ("cannot tell yet", True)],
)
def test_a_question_with_its_own_cannot_tell_is_not_declinable(option: str, declinable: bool) -> None:
    question = choice("", "?", ["a", option], ["", ""]).question
    assert question.declinable is declinable
    assert question.scored == (("a", option, CANNOT_TELL) if declinable else ("a", option))


@pytest.mark.parametrize(
    ("typed", "answer", "option"),
    [
        (URGENT, True, "yes"),
        (URGENT, False, "no"),
        (TEAM, "it", "it"),
        (ANGER, 0, "calm"),
        (ANGER, 2, "furious"),
        (ANGER, "cross", "cross"),
        (FLAG, "true", "true"),
        (FLAG, True, "true (boolean)"),
    ],
)
def test_answers_are_options(typed: TypedQuestion, answer: Any, option: str) -> None:
    assert typed.option_of(answer) == option


@pytest.mark.parametrize(
    ("typed", "answer", "known"),
    [
        (URGENT, 1, "True, False"),
        (URGENT, "yes", "True, False"),
        (TEAM, "sales", "'billing', 'it'"),
        (TEAM, True, "'billing', 'it'"),
        (ANGER, 3, "0, 1, 2"),
        (ANGER, -1, "0, 1, 2"),
        (ANGER, True, "0, 1, 2"),
        (choice("", "?", [str(n) for n in range(12)], [""] * 12), "x", "'8', '9', ..."),
    ],
)
def test_other_answers_are_refused_with_those_that_there_are(
    typed: TypedQuestion, answer: Any, known: str
) -> None:
    with pytest.raises(OptionsError, match="is no answer to this question") as refused:
        typed.option_of(answer)
    assert str(refused.value).endswith(known)


# ---- cases ---------------------------------------------------------------------------------------


def test_cases_have_options_as_answers() -> None:
    row = LabelledInput("mail", {"anger": 1, "urgent": None, "team": "it"})
    (case,) = cases_of([URGENT, TEAM, ANGER], [row])
    assert (case.input, dict(case.answers)) == ("mail", {"anger": "cross", "urgent": None, "team": "it"})


@pytest.mark.parametrize(
    ("questions", "answers", "location", "message"),
    [
        ([URGENT], {"nobody": True}, ("cases", 1, "answers", "nobody"), "there is no question 'nobody'"),
        ([URGENT], {"urgent": "x"}, ("cases", 1, "answers", "urgent"), "'x' is no answer"),
        ([URGENT, predicate("", "?")], {}, ("questions", 1, "name"), "every question needs a name"),
        ([URGENT, TEAM, URGENT], {}, ("questions", 2, "name"), "two questions have the name 'urgent'"),
        ([URGENT, predicate("now", "Is it urgent?")], {}, ("questions", 1), "instructions and options of 'urgent'"),
    ],
)  # fmt: skip
def test_cases_that_fit_no_question_are_refused(
    questions: Sequence[TypedQuestion], answers: Any, location: Any, message: str
) -> None:
    with pytest.raises(ServiceError, match=message) as refused:
        cases_of(questions, [LabelledInput("x", {"urgent": True}), LabelledInput("y", answers)])
    assert refused.value.location == location


# ---- the engine's request ------------------------------------------------------------------------


def body(
    model: str = BASE, labelled: Any = None, questions: Any = (URGENT, ANGER), **extras: Any
) -> DecisionBody:
    return DecisionBody(model, ("mail",), questions, schemas.DecideOptions(**extras), labelled)


ROWS = (LabelledInput("a", {"anger": 2, "urgent": True}), LabelledInput("b", {"anger": None}))


def test_the_base_model_answers_without_an_adapter() -> None:
    request = body(samples=4, seed=3, gate=schemas.Gate(min_confidence=0.5), truncate=True).request(BASE)
    assert request.questions == (URGENT.question, ANGER.question)
    assert (request.inputs, request.adapter, request.truncate) == (("mail",), None, True)
    assert (request.settings.samples, request.settings.seed) == (4, 3)
    assert request.gate.thresholds.min_confidence == 0.5


def test_an_adapter_is_named_as_model_or_beside_it() -> None:
    named, beside = body("adp_1").request(BASE), body(adapter_id="adp_1").request(BASE)
    assert (named.model, named.adapter) == ("adp_1", None)
    assert (beside.model, beside.adapter) == (BASE, "adp_1")


def test_cases_are_the_support_of_an_adapter() -> None:
    adapt = schemas.Adapt(effort="fast", calibration_folds=2)
    request = body(labelled=ROWS, adapt=adapt, seed=5).request(BASE)
    questions = [URGENT.question, ANGER.question]
    support = tuple(examples_of(questions, cases_of([URGENT, ANGER], ROWS)))
    assert [(row.input, row.output) for row in support] == [
        ("a", "yes"),
        ("a", "furious"),
        ("b", CANNOT_TELL),
    ]
    known = (URGENT, ANGER)
    assert request.adapter == AdaptRequest(
        support, AdaptOverrides("fast"), 5, calibration_folds=2, questions=known
    )


def test_questions_that_no_case_answers_make_no_other_adapter() -> None:
    request = body(labelled=ROWS, questions=(URGENT, TEAM, ANGER)).request(BASE)
    assert len(request.questions) == 3
    assert request.adapter == body(labelled=ROWS).request(BASE).adapter


def test_gates_of_questions_are_thresholds_by_name() -> None:
    gates = {"urgent": schemas.Gate(min_confidence=0.9)}
    request = body(gates=gates, gate=schemas.Gate(min_margin=0.1), confidence="predictive").request(BASE)
    assert dict(request.gates) == {"urgent": Thresholds(min_confidence=0.9)}
    assert (request.gate.thresholds.min_margin, request.confidence) == (0.1, "predictive")


@pytest.mark.parametrize(
    ("asked", "location", "message"),
    [
        (body("adp_1", adapter_id="adp_2"), ("abmll", "adapter_id"), "model names an adapter already, 'adp_1'"),
        (body("adp_1", ROWS), ("abmll", "cases"), "name 'fake-1b' as model, and no adapter"),
        (body(labelled=ROWS, adapter_id="adp_1"), ("abmll", "cases"), "and no adapter"),
        (body(adapt=schemas.Adapt(steps=2)), ("abmll", "adapt"), "adapt applies to cases"),
        (body(gate=schemas.Gate(target_error=0.1)), ("abmll", "gate"), "need an adapter"),
        (
            body("adp_1", gate=schemas.Gate(target_error=0.1), gates={"urgent": schemas.Gate()}),
            ("abmll", "gates"),
            "leave gates out",
        ),
        (body(gates={"nobody": schemas.Gate()}), ("abmll", "gates", "nobody"), "no question 'nobody'"),
        (body(gates={"urgent": schemas.Gate(target_error=0.1)}), ("abmll", "gates", "urgent"), "give them as gate"),
        (body(gates={"urgent": schemas.Gate(max_semantic_entropy=1)}), ("abmll", "gates", "urgent"), "on free text"),
    ],
)  # fmt: skip
def test_what_excludes_itself_is_refused_at_its_place(
    asked: DecisionBody, location: Any, message: str
) -> None:
    with pytest.raises(ServiceError, match=message) as refused:
        asked.request(BASE)
    assert refused.value.location == location


@pytest.mark.parametrize(
    ("param", "place"),
    [
        ("inputs[0]", ("input",)),
        ("questions[1]", ("questions", 1)),
        ("adapter_id", ("abmll", "adapter_id")),
        ("model", ("model",)),
        ("samples", ("abmll", "samples")),
        ("adapt.steps", ("abmll", "adapt", "steps")),
        ("support", ("abmll", "cases")),
        ("support[0].input", ("abmll", "cases", 0, "input")),
        ("support[0].output", ("abmll", "cases", 0, "answers", "urgent")),
        ("support[1].options", ("abmll", "cases", 0, "answers", "anger")),
        ("support[2]", ("abmll", "cases", 1, "answers", "anger")),
    ],
)
def test_the_engines_fields_have_places_in_the_body(param: str, place: Any) -> None:
    with pytest.raises(ServiceError) as refused, placed_errors(body(labelled=ROWS)):
        raise InvalidOptionsError("wrong", param)
    assert refused.value.location == place
