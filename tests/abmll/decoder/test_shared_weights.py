"""Copies of a model that share its weights: each backbone on one computes what it does alone."""

import pytest
import torch

from abmll.decoder.shared_weights import with_shared_weights
from abmll.model import FewShotModel
from abmll.posterior.posteriors import GlobalPosterior
from abmll.text.prompting import PromptTemplate
from abmll.text.tasks import Query
from tests.tiny import CONFIGS, make_config, tiny_model, tiny_tokenizer

QUERIES = [Query(text, ("good", "bad")) for text in ("great film", "dull story")]
STARTS = [(1, "\nAnswer:"), (2, " ->"), (0, "\n")]


def build(base: object, first_layer: int, after_input: str) -> FewShotModel:
    config = make_config(rank=2, first_layer=first_layer, offset=0.05)
    template = PromptTemplate(after_input=after_input)
    untrained = FewShotModel(base, tiny_tokenizer(), config, template=template)
    noise = 0.2 * torch.randn(
        untrained.prior.values.shape, generator=torch.Generator().manual_seed(first_layer)
    )
    untrained.prior = GlobalPosterior(config, untrained.prior.sites, untrained.prior.values + noise)
    return untrained


def answers(model: FewShotModel) -> list[object]:
    return [prediction.predictive for prediction in model.predict(None, QUERIES, samples=4, seed=3)]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_models_on_one_base_answer_as_each_on_a_base_of_its_own(architecture: str) -> None:
    alone = [answers(build(tiny_model(architecture), *start)) for start in STARTS]
    base = tiny_model(architecture)
    together = [build(with_shared_weights(base), *start) for start in STARTS]
    assert [answers(model) for model in together] == alone
    assert [answers(model) for model in reversed(together)] == alone[::-1]
    weights = {p.data_ptr() for p in base.parameters()}
    assert all({p.data_ptr() for p in m.backbone.model.parameters()} == weights for m in together)
    assert len(set(map(repr, alone))) == 3  # else the models would not differ


def test_a_copy_of_a_wrapped_model_is_wrapped_for_itself() -> None:
    first = build(tiny_model(), 1, " ->")
    before = answers(first)
    second = build(with_shared_weights(first.backbone.model), 2, "\n")
    assert answers(second) == answers(build(tiny_model(), 2, "\n"))
    assert answers(first) == before
