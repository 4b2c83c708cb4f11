"""Models have the theta, template and settings of their start, on the right base."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from abmll.adaptation.settings import AdaptSettings
from abmll.errors import PosteriorMismatchError
from abmll.model import FewShotModel
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.posteriors import GlobalPosterior
from abmll.similarity.gaussian_process import SimilarityConfig
from abmll.text.prompting import RECOMMENDED_TEMPLATE, PromptTemplate
from abmll.text.tasks import Query
from model_store.models import Start, build_model, check_base, load_model
from model_store.posteriors import LoadedPosterior, PosteriorManifest
from model_store.pretrained.bases import LoadedBase, load_base
from model_store.pretrained.catalogue import Dtype
from model_store.pretrained.identity import BaseIdentity
from tests.tiny import make_config, tiny_sentence_encoder

ADAPTER = make_config(rank=2, first_layer=1, modules=("q", "down"), offset=0.05)


@pytest.fixture
def base(checkpoint: Path, tmp_path: Path) -> LoadedBase:
    return load_base(str(checkpoint), quantisation="none", cache_dir=tmp_path / "cache", progress=False)


@pytest.fixture
def posterior(base: LoadedBase) -> LoadedPosterior:
    untrained = FewShotModel(base.model, base.tokenizer, ADAPTER).prior
    noise = 0.05 * torch.randn(len(untrained.values), generator=torch.Generator().manual_seed(0))
    prior = GlobalPosterior(ADAPTER, untrained.sites, untrained.values + noise)
    manifest = PosteriorManifest.of(
        prior,
        id="tiny",
        base=base.identity,
        adapt={"steps": 3, "learning_rate": 0.01, "batch_size": 4, "beta": 0.5},
        template=PromptTemplate(after_input=" ->").to_json(),
        training={},
        metrics={},
    )
    return LoadedPosterior(prior, manifest)


def test_a_posterior_brings_its_base_its_template_and_its_settings(
    posterior: LoadedPosterior, checkpoint: Path, tmp_path: Path
) -> None:
    start = Start.of(posterior)
    loaded = load_model(str(checkpoint), start, cache_dir=tmp_path / "cache", progress=False)
    assert (loaded.base, loaded.manifest) == (posterior.manifest.base, posterior.manifest)
    assert loaded.model.prior is posterior.prior
    assert loaded.model.defaults == AdaptSettings(steps=3, learning_rate=0.01, batch_size=4, beta=0.5)
    assert loaded.model.encoder.template == PromptTemplate(after_input=" ->")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_base_and_sentence_encoder_compute_in_the_dtype_that_is_asked_for(
    dtype: Dtype, checkpoint: Path, tmp_path: Path
) -> None:
    encoder, tokenizer = tiny_sentence_encoder()
    encoder.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    similarity = SimilarityConfig(sentence_encoder=str(tmp_path / "encoder"))
    loaded = load_model(
        str(checkpoint), Start(replace(ADAPTER, similarity=similarity)), dtype=dtype,
        cache_dir=tmp_path / "cache", progress=False,
    )  # fmt: skip
    assert loaded.model.backbone.dtype == getattr(torch, dtype)
    assert loaded.model.sentences is not None
    assert loaded.model.sentences.dtype == getattr(torch, dtype)


def test_without_a_posterior_theta_is_untrained(base: LoadedBase) -> None:
    model = build_model(base, Start(ADAPTER))
    assert torch.equal(model.prior.values, GlobalPosterior.untrained(ADAPTER, model.prior.sites).values)
    assert (model.encoder.template, model.defaults) == (RECOMMENDED_TEMPLATE, AdaptSettings())
    assert Start().theta == PosteriorConfig()


@pytest.mark.parametrize("trained", [False, True])
def test_a_point_has_the_mean_and_no_spread(
    trained: bool, base: LoadedBase, posterior: LoadedPosterior
) -> None:
    start = Start.of(posterior) if trained else Start(ADAPTER)
    noisy = build_model(base, start)
    queries = [Query("film", ("good", "bad"))]
    mean = noisy.predict(None, queries, samples=0)[0].predictive.probabilities
    point = build_model(base, replace(start, point=True))
    sampled = point.predict(None, queries, samples=3)[0].predictive.probabilities
    assert sampled == pytest.approx(mean, abs=1e-6)
    for tensors in point.prior.by_site():
        assert not tensors.spread_a.any()
        assert not tensors.spread_b.any()
    assert any(tensors.spread_a.any() for tensors in noisy.prior.by_site())


def test_a_posterior_is_for_its_base_in_any_quantisation(
    base: LoadedBase, posterior: LoadedPosterior, caplog: pytest.LogCaptureFixture
) -> None:
    made_for = posterior.manifest.base
    check_base(posterior.manifest, made_for)
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "model_store"):
        check_base(posterior.manifest, replace(made_for, quantisation="int8"))
    assert caplog.messages == ["posterior tiny was trained on none weights"]
    other = replace(posterior, manifest=replace(posterior.manifest, base=BaseIdentity("other", "1", "none")))
    with pytest.raises(PosteriorMismatchError, match=r"'tiny' was made for other at revision 1, not for "):
        build_model(base, Start.of(other))


def test_the_sentence_encoder_that_theta_names_is_loaded(base: LoadedBase, tmp_path: Path) -> None:
    model, tokenizer = tiny_sentence_encoder()
    model.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    name = str(tmp_path / "encoder")
    named = Start(replace(ADAPTER, similarity=SimilarityConfig(sentence_encoder=name)))
    for start, given in ((named, None), (Start(ADAPTER), name)):
        built = build_model(base, start, sentence_encoder=given, cache_dir=tmp_path / "cache", progress=False)
        assert built.sentences is not None
        assert built.sentences(["a film"]).shape[0] == 1
    assert build_model(base, Start(ADAPTER)).sentences is None
