"""Several questions about an input: laws of their answers, and an adapter that learns them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from abmll.adaptation.settings import AdaptSettings
from abmll.model import FewShotModel
from abmll.posterior.posteriors import TaskPosterior
from abmll.prediction.run import Prediction
from abmll.similarity.class_examples import all_from_tensors, all_to_tensors
from abmll.similarity.gaussian_process import SimilarityConfig
from abmll.text.questions import Case, Question, examples_of
from abmll.text.tasks import CANNOT_TELL

TOPIC = Question("topic", "choice", "What is it about?", ("film", "story", "money"))
GOOD = Question("good", "predicate", "Is it good?", ("yes", "no"))
LEVEL = Question("level", "score", "How great?", ("dull", "great"), declinable=False)
TEXTS = ("the film was wonderful and the actors were great", "a dull story, badly told; I want my money back")
CASES = (
    Case(TEXTS[0], {"topic": "film", "good": "yes", "level": "great"}),
    Case(TEXTS[1], {"topic": "story", "good": "no", "level": "dull"}),
    Case("I want my money back", {"topic": "money", "good": None}),
    Case("the actors were great", {"topic": "film", "good": "yes", "level": "great"}),
)
STEPS = AdaptSettings(steps=3, learning_rate=0.01, batch_size=6)


@pytest.fixture
def model(make_model: Callable[..., FewShotModel]) -> FewShotModel:
    return make_model()


@pytest.fixture
def adapter(model: FewShotModel) -> TaskPosterior:
    return model.adapt(examples_of([TOPIC, GOOD, LEVEL], CASES), STEPS).posterior


def ask(
    model: FewShotModel, adapter: TaskPosterior | None, questions: list[Question], text: str
) -> list[Prediction]:
    return model.predict(adapter, [question.query(text) for question in questions], samples=4)


def close(one: Prediction, other: Prediction) -> bool:
    pairs = zip(one.predictive.probabilities, other.predictive.probabilities, strict=True)
    return all(abs(a - b) < 1e-5 for a, b in pairs) and one.answerable == pytest.approx(
        other.answerable, abs=1e-5
    )


def test_questions_in_one_call_are_answered_as_one_by_one(
    model: FewShotModel, adapter: TaskPosterior
) -> None:
    for posterior in (None, adapter):
        together = ask(model, posterior, [TOPIC, GOOD, LEVEL], TEXTS[0])
        for question, found in zip((TOPIC, GOOD, LEVEL), together, strict=True):
            assert close(ask(model, posterior, [question], TEXTS[0])[0], found)


def test_the_order_of_options_changes_no_probability(model: FewShotModel, adapter: TaskPosterior) -> None:
    turned = replace(TOPIC, options=("money", "film", "story"))
    for posterior in (None, adapter):
        (one,), (other,) = ask(model, posterior, [TOPIC], TEXTS[1]), ask(model, posterior, [turned], TEXTS[1])
        expected = dict(zip(other.predictive.options, other.predictive.probabilities, strict=True))
        for option, probability in zip(one.predictive.options, one.predictive.probabilities, strict=True):
            assert probability == pytest.approx(expected[option], abs=1e-5)
        assert one.answerable == pytest.approx(other.answerable, abs=1e-5)


def test_what_may_be_declined_has_the_same_probabilities_given_that_it_is_not(model: FewShotModel) -> None:
    (asked,) = ask(model, None, [TOPIC], TEXTS[0])
    (plain,) = ask(model, None, [replace(TOPIC, declinable=False)], TEXTS[0])
    assert asked.predictive.options == TOPIC.options == plain.predictive.options
    # Both are at the temperature 1 of the tiny model.
    pairs = zip(asked.predictive.probabilities, plain.predictive.probabilities, strict=True)
    assert all(a == pytest.approx(b, abs=1e-5) for a, b in pairs)
    assert plain.answerable is None
    whole = replace(TOPIC, options=(*TOPIC.options, CANNOT_TELL), declinable=False)
    (found,) = ask(model, None, [whole], TEXTS[0])
    assert asked.answerable == pytest.approx(1 - found.predictive.probabilities[-1], abs=1e-5)


def test_answerable_is_learned_from_cases(model: FewShotModel) -> None:
    support = examples_of([GOOD], [Case(TEXTS[0], {"good": "yes"}), Case(TEXTS[1], {"good": None})] * 4)
    adapter = model.adapt(support, replace(STEPS, steps=40)).posterior
    known, unknown = (ask(model, adapter, [GOOD], text)[0].answerable for text in TEXTS)
    assert known is not None
    assert unknown is not None
    assert known > 0.8 > 0.2 > unknown


def test_each_question_with_fixed_classes_has_its_own_gaussian_process(
    make_model: Callable[..., FewShotModel],
) -> None:
    model = make_model(similarity=SimilarityConfig())
    support = examples_of([TOPIC, GOOD, LEVEL], CASES)
    adapter = model.adapt(support, replace(STEPS, steps=0)).posterior
    assert [len(examples.labels) for examples in adapter.class_examples] == [4, 4, 3]
    again = all_from_tensors(all_to_tensors(adapter.class_examples))
    for one, other in zip(adapter.class_examples, again, strict=True):
        assert (one.classes, one.question) == (other.classes, other.question)
        assert torch.equal(one.features, other.features)
    # Features are those of the input alone, so all questions about an input share them.
    first, second, _ = adapter.class_examples
    assert torch.allclose(first.features, second.features, atol=1e-5)
    own = [example for example in support if example.instruction == GOOD.instruction]
    alone = model.adapt(own, replace(STEPS, steps=0)).posterior
    (together,), (single,) = ask(model, adapter, [GOOD], TEXTS[0]), ask(model, alone, [GOOD], TEXTS[0])
    assert close(together, single)
    assert together.typicality == single.typicality is not None
    unknown = ask(model, adapter, [replace(GOOD, instruction="Is it bad?")], TEXTS[0])[0]
    assert unknown.typicality is None
