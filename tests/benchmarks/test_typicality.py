"""The benchmark adapts nothing; its typicalities are those of the answers of an adapter."""

from dataclasses import replace

import torch

from abmll.adaptation.settings import AdaptSettings
from abmll.model import FewShotModel
from abmll.similarity.features import Whitening
from abmll.similarity.gaussian_process import SimilarityConfig
from abmll.text.tasks import Example, Task
from benchmarks.typicality import _states, fitted
from tests.tiny import HIDDEN, make_config, tiny_model, tiny_tokenizer

OPTIONS = ("positive", "negative")
TEXTS = (
    "the film was wonderful",
    "a badly told story",
    "dull",
    "the actors were great",
    "Paris",
    "money",
)
ITEMS = tuple(Example(text, OPTIONS[i % 2], OPTIONS) for i, text in enumerate(TEXTS))


def test_its_typicalities_are_those_of_an_adapters_answers() -> None:
    config = make_config(rank=2, first_layer=1, similarity=SimilarityConfig(4.0))
    model = FewShotModel(tiny_model(), tiny_tokenizer(), config, defaults=AdaptSettings(2, 1e-3, 4))
    states = [torch.randn(20, HIDDEN, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    model.prior = replace(model.prior, whitening=Whitening.of(states))
    support, items = ITEMS[:4], ITEMS[2:]
    task = Task("films", train=support, test=items)
    gaussian_process = fitted(model, support)
    answers = model.predict(model.adapt(support).posterior, [item.query for item in items], samples=0)
    found = [gaussian_process.typicality(state) for state in _states(model, task)]
    assert found == [answer.typicality for answer in answers]
    assert len({answer.typicality for answer in answers}) > 1
