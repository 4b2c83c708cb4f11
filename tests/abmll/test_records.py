"""Records are data: adaptations and posteriors pickle to their tensors, without the model."""

import io
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from abmll.adaptation.run import Adaptation
from abmll.adaptation.settings import AdaptSettings
from abmll.model import FewShotModel
from abmll.posterior.posteriors import GlobalPosterior, TaskPosterior
from abmll.similarity.features import Whitening
from abmll.similarity.gaussian_process import SimilarityConfig
from abmll.similarity.sentence_encoder import SentenceEncoder
from abmll.text.tasks import Example
from tests.tiny import HIDDEN, tiny_sentence_encoder

# Size of a pickle relative to its tensors: the rest is configuration, sites and losses.
ROOM = 1.05
# A pickle names the modules of what it holds. These belong to the model.
NETWORKS = (
    "torch.nn",
    "transformers",
    "tokenizers",
    "abmll.similarity.sentence_encoder",
    "abmll.similarity.features",
)


@pytest.fixture
def model(make_model: Callable[..., FewShotModel]) -> FewShotModel:
    """A model with a whitening and a sentence encoder."""
    model = make_model(rank=16, first_layer=0)
    states = torch.randn(20, HIDDEN, generator=torch.Generator().manual_seed(0))
    similarity = SimilarityConfig(sentence_encoder="tiny")
    config = replace(model.prior.config, similarity=similarity)
    model.prior = replace(model.prior, config=config, whitening=Whitening.of([states]))
    model.sentences = SentenceEncoder(*tiny_sentence_encoder(), max_tokens=40)
    return model


@pytest.fixture
def adaptation(model: FewShotModel, support: list[Example]) -> Adaptation:
    return model.adapt(support, AdaptSettings(steps=2, learning_rate=0.01, batch_size=4))


def tensors_of(record: Any) -> list[torch.Tensor]:
    """Return every tensor that a pickle of `record` writes.

    Fails where the record holds a network.
    """
    found: list[torch.Tensor] = []

    class Collector(pickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                found.append(value)
            assert not isinstance(value, torch.nn.Module)
            return NotImplemented

    Collector(io.BytesIO()).dump(record)
    return found


def named_in(data: bytes) -> set[str]:
    """Return the names of modules that a pickle holds."""
    return {
        str(value)
        for op, value, _ in pickletools.genops(data)
        if isinstance(value, str) and "UNICODE" in op.name
    }


def test_an_adaptation_pickles_to_its_tensors(adaptation: Adaptation) -> None:
    posterior = adaptation.posterior
    assert posterior.class_examples
    assert posterior.class_examples[0].features.shape[1] == 2 * HIDDEN  # states and sentences
    for record in (adaptation, posterior):
        data = pickle.dumps(record)
        assert len(data) <= ROOM * posterior.nbytes
        assert not [name for name in named_in(data) if name.startswith(NETWORKS)]


def test_no_tensor_of_a_record_is_a_view_of_a_larger_one(adaptation: Adaptation) -> None:
    found = tensors_of(adaptation)
    assert len(found) == 4  # values, features, labels and names
    for tensor in found:
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert tensor.device.type == "cpu"
    classes = adaptation.posterior.to_tensors()["head.classes"]
    assert adaptation.posterior.nbytes == sum(tensor.nbytes for tensor in found) + classes.nbytes


def test_a_global_posterior_is_a_record_too(model: FewShotModel) -> None:
    prior: GlobalPosterior = pickle.loads(pickle.dumps(model.prior))
    assert prior.config == model.prior.config
    assert len(pickle.dumps(model.prior)) <= ROOM * model.prior.nbytes
    assert model.prior.whitening is not None
    assert model.prior.nbytes == model.prior.values.nbytes + 4 * (HIDDEN + HIDDEN**2)


def test_a_posterior_read_from_tensors_is_one_as_well(adaptation: Adaptation) -> None:
    posterior = adaptation.posterior
    again = TaskPosterior.from_tensors(posterior.config, posterior.sites, posterior.to_tensors())
    assert again.nbytes == posterior.nbytes
    assert len(pickle.dumps(again)) <= ROOM * posterior.nbytes
