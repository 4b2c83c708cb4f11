"""Typed questions at the engine: each answered by itself, zero-shot or by cases; errors name them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from abmll.prediction.settings import PredictSettings, Thresholds
from abmll.text.questions import Case, Question, TypedQuestion, examples_of
from abmll.text.tasks import CANNOT_TELL
from service.engine.admission import admit_adapt
from service.engine.answers import Decided
from service.engine.requests import AdaptOverrides, AdaptRequest, CacheOutcome, DecideRequest
from service.errors import ServiceError
from service.gating.records import GateRequest
from service.settings import Settings
from tests.service.conftest import Server
from tests.service.fakes import served_model

TOPIC = Question("topic", "choice", "What is it about?", ("repair", "order"), ("broken", ""))
URGENT = Question("urgent", "predicate", "Is it urgent?", ("yes", "no"))
CASES = (
    Case("the wheel is broken", {"topic": "repair", "urgent": "yes"}),
    Case("two of them please", {"topic": "order", "urgent": None}),
)
ZERO_SHOT = DecideRequest((TOPIC, URGENT), ("hello", "goodbye"))


def decide(root: Path, *requests: DecideRequest, **settings: object) -> list[Decided]:
    server = Server(root, **settings)

    async def play() -> list[Decided]:
        async with server.running():
            return [await server.engine.decide(request) for request in requests]

    return asyncio.run(play())


def by_cases(questions: tuple[Question, ...] = (TOPIC, URGENT)) -> AdaptRequest:
    return AdaptRequest(tuple(examples_of(questions, CASES)))


# Questions that no case answers are checked too.
TYPED = TypedQuestion(URGENT, (True, False))
WIDE = TypedQuestion(Question("wide", "choice", "?", tuple("abcde")), tuple("abcde"))
UNASKABLE = replace(
    by_cases(), questions=(TYPED, TypedQuestion(replace(URGENT, instruction=" "), (True, False)))
)


def probabilities(decided: Decided) -> list[list[tuple[float, ...]]]:
    return [[row.prediction.predictive.probabilities for row in rows] for rows in decided.rows]


def test_every_question_about_every_input_is_answered_zero_shot(tmp_path: Path) -> None:
    (found,) = decide(tmp_path, ZERO_SHOT)
    assert [len(rows) for rows in found.rows] == [2, 2]
    assert (found.adapter_id, found.learned, found.cache) == (None, [False, False], CacheOutcome.HIT)
    topic, urgent = found.rows[1]
    assert topic.prediction.predictive.options == ("repair", "order")
    assert urgent.prediction.predictive.options == ("yes", "no")
    assert 0 < (topic.prediction.answerable or 0) < 1


def test_an_answer_depends_on_no_other_question_input_or_name(tmp_path: Path) -> None:
    alone = DecideRequest((replace(URGENT, name="other"),), ("goodbye",))
    turned = DecideRequest((URGENT, TOPIC), ("goodbye", "hello"))
    both, one, other = decide(tmp_path, ZERO_SHOT, alone, turned)
    assert probabilities(one)[0][0] == probabilities(both)[1][1] == probabilities(other)[0][0]


def test_cases_make_an_adapter_that_says_which_questions_it_has_learned(tmp_path: Path) -> None:
    new = Question("new", "score", "How angry?", ("calm", "angry"))
    request = DecideRequest((TOPIC, new), ("hello",), by_cases())
    made, again = decide(tmp_path, request, request)
    assert made.learned == [True, False]
    assert (made.cache, again.cache) == (CacheOutcome.MISS, CacheOutcome.HIT)
    (named,) = decide(tmp_path, replace(request, adapter=made.adapter_id))
    assert probabilities(named) == probabilities(again) == probabilities(made)


def test_a_case_without_an_answer_is_one_that_cannot_be_told() -> None:
    found = examples_of((TOPIC, URGENT), CASES)
    assert [example.output for example in found] == ["repair", "yes", "order", CANNOT_TELL]
    assert found[0].options == ("repair", "order", CANNOT_TELL)
    assert found[0].descriptions == ("broken", "", "")
    assert all(example.declinable for example in found)
    (only,) = examples_of((URGENT,), [Case("x", {"urgent": "no"})])
    assert (only.instruction, only.output) == ("Is it urgent?", "no")


def test_the_model_names_the_base_by_any_of_its_names_or_an_adapter(tmp_path: Path) -> None:
    (plain,) = decide(tmp_path, ZERO_SHOT)
    for model in ("fake-1b", "jev-latest", "their-model"):
        (found,) = decide(tmp_path, replace(ZERO_SHOT, model=model), model_aliases="jev-latest, their-model")
        assert (found.model, probabilities(found)) == ("fake-1b", probabilities(plain))
    (made,) = decide(tmp_path, replace(ZERO_SHOT, adapter=by_cases()))
    (named,) = decide(tmp_path, replace(ZERO_SHOT, model=made.adapter_id))
    assert named.model == named.adapter_id == made.model
    assert probabilities(named) == probabilities(made)
    with pytest.raises(ServiceError, match="names an adapter") as refused:
        decide(tmp_path, replace(ZERO_SHOT, model=made.adapter_id, adapter=by_cases()))
    assert refused.value.param == "model"


def test_the_gate_decides_each_answer(tmp_path: Path) -> None:
    gate = GateRequest(Thresholds(min_confidence=1.0))
    (found,) = decide(tmp_path, replace(ZERO_SHOT, gate=gate))
    assert {row.decision for rows in found.rows for row in rows} == {"abstain"}


def test_a_question_may_have_a_gate_of_its_own(tmp_path: Path) -> None:
    never, always = Thresholds(min_confidence=1.0), Thresholds()
    shared = GateRequest(never)
    requests = (
        replace(ZERO_SHOT, gates={"topic": never}),
        replace(ZERO_SHOT, gate=shared, gates={"topic": always}),
        replace(ZERO_SHOT, gate=shared, gates={"nobody": always}),
    )
    found = decide(tmp_path, *requests)
    assert [[[row.decision for row in rows] for rows in decided.rows] for decided in found] == [
        [["abstain", "answer"]] * 2,
        [["answer", "abstain"]] * 2,
        [["abstain", "abstain"]] * 2,
    ]
    assert probabilities(found[0]) == probabilities(found[1]) == probabilities(found[2])


@pytest.mark.parametrize(
    ("request_", "param", "says"),
    [
        (replace(ZERO_SHOT, questions=(replace(URGENT, instruction=" "),)), "questions[0]", "instruction"),
        (replace(ZERO_SHOT, questions=(TOPIC, replace(TOPIC, options=("a",), descriptions=()))), "questions[1]", None),
        (replace(ZERO_SHOT, questions=(replace(TOPIC, options=("a", "a")),)), "questions[0]", "repeated"),
        (replace(ZERO_SHOT, questions=(replace(TOPIC, descriptions=("x",)),)), "questions[0]", "descriptions"),
        (replace(ZERO_SHOT, questions=(URGENT,) * 3), "questions", "3 questions"),
        (replace(ZERO_SHOT, inputs=("x",) * 4), "inputs", "4 inputs"),
        (replace(ZERO_SHOT, inputs=("x", "y" * 600)), "inputs[1]", "tokens"),
        (replace(ZERO_SHOT, inputs=("x", "y" * 1001)), "inputs[1]", "1001 characters"),
        (replace(ZERO_SHOT, questions=(replace(URGENT, instruction="y" * 1001),)), "questions[0]", "1001"),
        (replace(ZERO_SHOT, settings=PredictSettings(65)), "samples", "65 samples"),
        (replace(ZERO_SHOT, gate=GateRequest(target_error=0.1)), "adapter_id", "calibrat"),
        (
            replace(ZERO_SHOT, gate=GateRequest(Thresholds(max_semantic_entropy=1)), gates={"topic": Thresholds()}),
            "gate",
            "free text",
        ),
        (replace(ZERO_SHOT, adapter=UNASKABLE), "questions[1]", "instruction is empty"),
        (replace(ZERO_SHOT, adapter=replace(UNASKABLE, questions=(TYPED, WIDE))), "questions[1]", "6 options"),
    ],
)  # fmt: skip
def test_bad_questions_are_refused_by_their_place(
    tmp_path: Path, request_: DecideRequest, param: str, says: str | None
) -> None:
    with pytest.raises(ServiceError, match=says) as refused:
        decide(tmp_path, request_, max_questions=2, max_inputs=3, max_text_chars=1000, max_options=5)
    assert refused.value.param == param


def test_options_that_only_one_place_of_a_question_has_name_the_question(tmp_path: Path) -> None:
    declined = replace(URGENT, options=("yes", CANNOT_TELL))
    with pytest.raises(ServiceError, match="no answer") as refused:
        decide(tmp_path, replace(ZERO_SHOT, questions=(TOPIC, declined)))
    assert refused.value.param == "questions[1]"


MANY = tuple(
    Case(f"text {n}", {"topic": "repair" if n % 2 else "order", "urgent": "yes" if n % 3 else "no"})
    for n in range(40)
)


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (AdaptOverrides(), 10),
        (AdaptOverrides("full"), 10),
        (AdaptOverrides(batch_size=4), 20),
        (AdaptOverrides(steps=3), 3),
        (AdaptOverrides("fast"), 2),
        (AdaptOverrides("instant"), 0),
    ],
)
def test_the_full_effort_has_steps_for_all_examples_of_several_questions(
    overrides: AdaptOverrides, steps: int
) -> None:
    """80 examples about inputs too short to share a row; those of one question keep their steps."""
    served, settings = served_model(), Settings()
    many = AdaptRequest(tuple(examples_of((TOPIC, URGENT), MANY)), overrides)
    assert admit_adapt(many, served, settings).settings.steps == steps
    one = AdaptRequest(
        tuple(TOPIC.example(case.input, case.answers["topic"]) for case in (*MANY, *MANY)), overrides
    )
    assert admit_adapt(one, served, settings).settings == overrides.apply(served.defaults)
