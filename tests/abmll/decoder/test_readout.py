"""Samples that differ in the readout alone, against dense models with that one weight changed."""

from collections.abc import Callable

import pytest
import torch

from abmll.decoder.backbone import Backbone
from abmll.decoder.layout import AdapterLayout
from abmll.decoder.readout import Readout
from abmll.decoder.rows import collate
from abmll.errors import PosteriorMismatchError
from abmll.model import FewShotModel
from abmll.posterior.noise.draws import means
from abmll.text.prompting import EncodedPrompt
from abmll.text.tasks import Query
from tests.tiny import CONFIGS, make_config, tiny_model, tiny_tokenizer

PROMPTS = [EncodedPrompt((5, 6, 7, 8, 9), ((1,), (2, 3), (4, 5, 6))), EncodedPrompt((40, 41), ((7, 8), (9,)))]
LIKE_LLAMA = [name for name in CONFIGS if Backbone(tiny_model(name), AdapterLayout()).has_readout]


@pytest.mark.parametrize("architecture", LIKE_LLAMA)
def test_noise_in_the_readout_is_that_of_a_dense_model(
    architecture: str, make_model: Callable[..., FewShotModel]
) -> None:
    model = make_model(architecture)
    backbone, noise = model.backbone, []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        site = backbone.sites[-1]
        noise.append(0.02 * torch.randn(site.d_out, site.d_in, generator=generator))
    rows = collate(PROMPTS)
    mean = means(model.prior.config, backbone.sites, model.prior.values[None])
    draw = mean.for_rows([0] * len(PROMPTS), rows.lengths)
    trunk = backbone.trunk(rows)
    readout = backbone.readout(trunk, rows, draw)
    found = backbone.readout_log_probs(readout, lambda x: torch.stack([x @ w.T for w in noise]), rows)
    plain = backbone.log_probs(trunk, rows, draw)
    for scores, change in zip(found, noise, strict=True):
        weight = backbone.model.base_model.layers[-1].mlp.down_proj.frozen.base.weight
        weight.data += change
        torch.testing.assert_close(scores, backbone.log_probs(trunk, rows, draw), atol=1e-4, rtol=1e-4)
        weight.data -= change
        assert (scores - plain).abs().max() > 0.01


def test_a_readout_split_and_joined_is_the_same(make_model: Callable[..., FewShotModel]) -> None:
    backbone = (model := make_model()).backbone
    rows = collate(PROMPTS)
    mean = means(model.prior.config, backbone.sites, model.prior.values[None])
    readout = backbone.readout(backbone.trunk(rows), rows, mean.for_rows([0, 0], rows.lengths))
    again = Readout.joined(readout.split(rows.scored_by_row))
    assert torch.equal(again.states, readout.states)
    assert torch.equal(again.inputs, readout.inputs)
    assert torch.equal(again.normaliser.words, readout.normaliser.words)


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        *((name, {}) for name in CONFIGS if name not in LIKE_LLAMA),
        ("llama", {"modules": ("q", "v")}),
        ("llama", {"family": "output", "offset": -20.0}),
    ],
)
def test_a_posterior_that_has_no_readout_is_refused(architecture: str, config: dict[str, object]) -> None:
    settings = make_config(readout_scale=2.0, **config)  # type: ignore[arg-type]
    with pytest.raises(PosteriorMismatchError, match="readout"):
        FewShotModel(tiny_model(architecture), tiny_tokenizer(), settings)


def test_a_model_may_sample_the_readout_of_any_posterior(make_model: Callable[..., FewShotModel]) -> None:
    plain = make_model(offset=0.05)
    model = FewShotModel(tiny_model(), tiny_tokenizer(), plain.prior, readout_scale=3.0)
    wanted = make_model(offset=0.05, readout_scale=3.0)
    query = Query("the film was wonderful", ("positive", "negative", "not related"))
    found, expected, full = (
        m.predict(None, [query], samples=6, seed=2)[0].predictive for m in (model, wanted, plain)
    )
    assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    assert found.stds != pytest.approx(full.stds, rel=0.01)


def test_a_model_may_sample_every_site_of_a_posterior_of_the_readout(
    make_model: Callable[..., FewShotModel],
) -> None:
    plain, of_readout = make_model(offset=0.05), make_model(offset=0.05, readout_scale=3.0)
    model = FewShotModel(tiny_model(), tiny_tokenizer(), of_readout.prior, readout_scale="off")
    query = Query("the film was wonderful", ("positive", "negative", "not related"))
    found, expected, narrow = (
        m.predict(None, [query], samples=6, seed=2)[0].predictive for m in (model, plain, of_readout)
    )
    assert found.stds == pytest.approx(expected.stds, rel=1e-5)
    assert found.stds != pytest.approx(narrow.stds, rel=0.01)
