from collections.abc import Callable

import pytest
import torch

from abmll.model import FewShotModel
from abmll.posterior.posteriors import GlobalPosterior
from abmll.text.tasks import Example
from tests.tiny import make_config, tiny_model, tiny_tokenizer

LABELS = ("positive", "negative", "not related")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def support() -> list[Example]:
    """Return labelled examples of different lengths."""
    words = [
        "the film was wonderful",
        "dull",
        "a badly told story, I want my money back",
        "great actors",
        "Paris",
        "0 1 2 3",
    ]
    return [Example(text, LABELS[i % 3], LABELS) for i, text in enumerate(words)]


@pytest.fixture
def make_model() -> Callable[..., FewShotModel]:
    """Return a function that makes a tiny model, by architecture and fields of `make_config`.

    Its global posterior is random, not zero, unless `random_prior` is False.
    """

    def make(architecture: str = "llama", *, random_prior: bool = True, **config: object) -> FewShotModel:
        values = {"rank": 4, "alpha": 8.0, "first_layer": 1, "offset": 0.02, **config}
        settings = make_config(**values)  # type: ignore[arg-type]
        model = FewShotModel(tiny_model(architecture), tiny_tokenizer(), settings)
        if random_prior:
            generator = torch.Generator().manual_seed(1)
            noise = 0.05 * torch.randn(model.prior.values.shape, generator=generator)
            model.prior = GlobalPosterior(settings, model.prior.sites, model.prior.values + noise)
        return model

    return make
