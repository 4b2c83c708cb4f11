"""Answers to questions without examples: their reference and their temperature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from abmll.adaptation.settings import AdaptSettings
from abmll.model import FewShotModel
from abmll.posterior.config import PosteriorConfig, TemperatureRule
from abmll.posterior.posteriors import GlobalPosterior, TaskPosterior
from abmll.similarity.gaussian_process import SimilarityConfig
from abmll.text.prompting import PromptEncoder
from abmll.text.tasks import Example, Query

TEXTS = ("the film was wonderful and the actors were great", "a dull story", "I want my money back")
MEANT = Query(TEXTS[0], ("film", "money"), "What is it about?", ("a film and its actors", "being paid"))
STEPS = AdaptSettings(steps=2, learning_rate=0.01, batch_size=4)


def with_config(model: FewShotModel, config: PosteriorConfig) -> FewShotModel:
    model.prior = GlobalPosterior(config, model.prior.sites, model.prior.values)
    return model


def with_template(model: FewShotModel, **values: object) -> FewShotModel:
    template = replace(model.encoder.template, score="pmi", **values)  # type: ignore[arg-type]
    model.encoder = PromptEncoder(model.encoder.tokenizer, template, 256)
    return model


def adapted(model: FewShotModel, *queries: Query) -> TaskPosterior:
    examples = [
        Example(query.input, query.options[i % 2], query.options, query.instruction, query.descriptions)
        for query in queries
        for i in range(2)
    ]
    return model.adapt(examples, STEPS).posterior


def logits(model: FewShotModel, posterior: TaskPosterior | None, query: Query) -> torch.Tensor:
    (found,) = model.predict(posterior, [query], samples=0)
    return torch.tensor(found.predictive.probabilities, dtype=torch.float64).log()


def difference(values: torch.Tensor) -> float:
    return float(values[0] - values[1])


def test_only_questions_without_examples_are_compared_with_inputs_that_say_nothing(
    make_model: Callable[..., FewShotModel],
) -> None:
    model = make_model()
    model = with_template(with_config(model, replace(model.prior.config, similarity=SimilarityConfig())))
    adapter = adapted(model, MEANT)
    other = replace(MEANT, instruction="What is it of?")
    before = {query: logits(model, adapter, query) for query in (MEANT, other)}

    with_template(model, content_free=("nothing", "N/A"))
    assert torch.equal(adapted(model, MEANT).values, adapter.values)
    assert torch.allclose(logits(model, adapter, MEANT), before[MEANT])
    assert not torch.allclose(logits(model, adapter, other), before[other], atol=1e-3)


def test_zero_shot_answers_have_their_own_temperature(make_model: Callable[..., FewShotModel]) -> None:
    model = make_model()
    plain = logits(model, None, MEANT)
    rule = TemperatureRule(base=2.0, zero_shot=0.5)
    with_config(model, replace(model.prior.config, temperature=rule, similarity=SimilarityConfig()))
    assert difference(logits(model, None, MEANT)) == pytest.approx(difference(plain) / 0.5, rel=1e-4)
    adapter = adapted(model, MEANT)
    assert adapter.config.temperature.zero_shot == 0.5
    other = replace(MEANT, instruction="What is it of?")
    sharp = difference(logits(model, adapter, other))
    flat = replace(adapter, config=replace(adapter.config, temperature=TemperatureRule(2.0)))
    assert sharp == pytest.approx(4 * difference(logits(model, flat, other)), rel=1e-3)
    assert difference(logits(model, adapter, MEANT)) == pytest.approx(
        difference(logits(model, flat, MEANT)), rel=1e-4
    )


def test_options_without_descriptions_have_the_base_temperature(
    make_model: Callable[..., FewShotModel],
) -> None:
    model, bare = make_model(), replace(MEANT, descriptions=())
    plain = logits(model, None, bare)
    rule = TemperatureRule(base=2.0, zero_shot=0.5)
    with_config(model, replace(model.prior.config, temperature=rule))
    assert difference(logits(model, None, bare)) == pytest.approx(difference(plain) / 2, rel=1e-4)


def test_a_temperature_of_zero_shot_answers_is_written_only_where_there_is_one() -> None:
    config = PosteriorConfig(temperature=TemperatureRule(zero_shot=0.7))
    assert PosteriorConfig.from_json(config.to_json()) == config
    assert "zero_shot_temperature" not in PosteriorConfig().to_json()
