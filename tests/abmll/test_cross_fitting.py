"""Cross-fitting is adapting and predicting by hand, and adapting at another temperature."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from abmll.adaptation.settings import AdaptSettings
from abmll.assurance.folds import make_folds
from abmll.assurance.held_out import CHOICE_SPREAD, SPREAD, temperature_factor
from abmll.cross_fitting import adapt_at_own_temperature, cross_predict
from abmll.model import FewShotModel
from abmll.posterior.config import TemperatureRule
from abmll.text.questions import Case, Question, examples_of
from abmll.text.tasks import Example


@pytest.mark.parametrize("samples", [0, 4])
def test_cross_prediction_is_adapting_to_the_rest_and_asking(
    make_model: Callable[..., FewShotModel], support: list[Example], samples: int
) -> None:
    model, settings = make_model(), AdaptSettings(steps=2, learning_rate=0.01, batch_size=4)
    folds = make_folds(support, 3)
    found = cross_predict(model, support, folds, settings, seed=5, samples=samples)
    assert [row.index for row in found] == list(range(len(support)))
    for fold in folds:
        posterior = model.adapt([support[i] for i in fold.kept], settings, seed=5).posterior
        queries = [support[i].query for i in fold.held_out]
        alone = model.predict(posterior, queries, samples=samples, seed=5)
        for i, prediction in zip(fold.held_out, alone, strict=True):
            assert found[i].probabilities == pytest.approx(prediction.predictive.probabilities, abs=2e-3)
            assert found[i].label == support[i].options.index(support[i].output)


@pytest.mark.parametrize(("own_options", "spread"), [(False, SPREAD), (True, CHOICE_SPREAD)])
def test_a_calibrated_adaptation_is_the_plain_one_at_the_temperature_of_its_held_out_examples(
    make_model: Callable[..., FewShotModel], support: list[Example], own_options: bool, spread: float
) -> None:
    if own_options:
        support = [replace(row, options=(*row.options, f"the {i}th")) for i, row in enumerate(support)]
    model, settings = make_model(), AdaptSettings(steps=2, learning_rate=0.01, batch_size=4)
    folds = make_folds(support, 3)
    adaptation, found = adapt_at_own_temperature(model, support, folds, settings, seed=5, samples=4)
    plain = model.adapt(support, settings, seed=5)
    assert adaptation.losses == pytest.approx(plain.losses, abs=1e-3)
    assert torch.allclose(adaptation.posterior.values, plain.posterior.values, atol=1e-2)
    rows = cross_predict(model, support, folds, settings, seed=5, samples=4)
    assert found.temperature_factor == pytest.approx(temperature_factor(rows, spread), rel=0.06 * spread)
    assert (found.n, found.correct) == (len(rows), sum(row.correct for row in rows))
    ratio = adaptation.posterior.config.temperature.base / plain.posterior.config.temperature.base
    assert ratio == pytest.approx(found.temperature_factor)
    assert ratio != 1


TOPIC = Question("topic", "choice", "What is it about?", ("film", "story"))
GOOD = Question("good", "predicate", "Is it good?", ("yes", "no"))


def test_each_question_is_answered_at_its_own_temperature(make_model: Callable[..., FewShotModel]) -> None:
    model, settings = make_model(), AdaptSettings(steps=2, learning_rate=0.01, batch_size=4)
    texts = ["the film was wonderful", "dull", "great actors", "a badly told story", "Paris", "0 1 2 3"]
    cases = [
        Case(text, {"topic": TOPIC.options[i % 2], "good": None if i == 5 else GOOD.options[i % 2]})
        for i, text in enumerate(texts)
    ]
    support = examples_of([TOPIC, GOOD], cases)
    folds = make_folds(support, 3)
    rows = cross_predict(model, support, folds, settings, seed=5, samples=4)
    assert [row.tellable for row in rows] == [True] * 11 + [False]
    adaptation, found = adapt_at_own_temperature(model, support, folds, settings, seed=5, samples=4)
    assert found.n == 11
    new = Question("new", "predicate", "Is it new?", ("yes", "no"))
    queries = [question.query("a dull film") for question in (TOPIC, GOOD, new)]
    after = model.predict(adaptation.posterior, queries, samples=4)
    factors = [question.temperature_factor for question in found.by_question]
    assert factors[0] != pytest.approx(factors[1])
    base = model.adapt(support, settings, seed=5).posterior.config.temperature.base
    config = adaptation.posterior.config
    for query, other, factor in zip(queries, after, [*factors, found.temperature_factor], strict=True):
        at_one = replace(config, temperature=TemperatureRule(base * factor))
        (one,) = model.predict(replace(adaptation.posterior, config=at_one), [query], samples=4)
        assert other.predictive.probabilities == pytest.approx(one.predictive.probabilities, abs=1e-5)
        assert other.answerable == pytest.approx(one.answerable, abs=1e-5)
