"""Build a model that adapts and predicts, from a base model and a global posterior."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from abmll.adaptation.settings import AdaptSettings
from abmll.decoder.shared_weights import with_shared_weights
from abmll.errors import PosteriorMismatchError
from abmll.model import FewShotModel
from abmll.posterior.config import PosteriorConfig, ReadoutChoice
from abmll.posterior.posteriors import GlobalPosterior
from abmll.prediction.semantic import Equivalence
from abmll.similarity.sentence_encoder import SentenceEncoder
from abmll.text.prompting import RECOMMENDED_TEMPLATE, PromptTemplate
from model_store.posteriors import LoadedPosterior, PosteriorManifest
from model_store.pretrained.bases import LoadedBase, load_base
from model_store.pretrained.catalogue import Dtype, Quantisation
from model_store.pretrained.identity import BaseIdentity
from model_store.pretrained.sentence_encoders import load_sentence_encoder

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Start of a model: theta, the template of its prompts, and the settings to adapt with.

    `theta` is a global posterior, or the configuration of an untrained one (B = 0). `point` takes
    the noise from it. `manifest` is that of the artifact that theta was read from; None for an
    untrained one.
    """

    theta: GlobalPosterior | PosteriorConfig = field(default_factory=PosteriorConfig)
    template: PromptTemplate = RECOMMENDED_TEMPLATE
    defaults: AdaptSettings = field(default_factory=AdaptSettings)
    point: bool = False
    manifest: PosteriorManifest | None = None

    @classmethod
    def of(cls, posterior: LoadedPosterior) -> Start:
        """Start from a posterior artifact, with the template and the settings of its manifest."""
        manifest = posterior.manifest
        return cls(
            posterior.prior,
            PromptTemplate.from_json(manifest.template),
            AdaptSettings(**manifest.adapt),
            manifest=manifest,
        )


@dataclass(frozen=True)
class LoadedModel:
    """A model that adapts and predicts, its base, and the manifest of its posterior, if any."""

    model: FewShotModel
    base: BaseIdentity
    manifest: PosteriorManifest | None


def load_model(
    base: str,
    start: Start,
    *,
    quantisation: Quantisation | None = None,
    dtype: Dtype | None = None,
    device: str = "cpu",
    cache_dir: Path | None = None,
    equivalence: Equivalence | None = None,
    readout_scale: ReadoutChoice = None,
    progress: bool = True,
) -> LoadedModel:
    """Load the base that this name means, and build the model of `start` on it; see `load_models`."""
    (model,) = load_models(
        base,
        [start],
        quantisation=quantisation,
        dtype=dtype,
        device=device,
        cache_dir=cache_dir,
        equivalence=equivalence,
        readout_scale=readout_scale,
        progress=progress,
    )
    return model


def load_models(
    base: str,
    starts: Sequence[Start],
    *,
    quantisation: Quantisation | None = None,
    dtype: Dtype | None = None,
    device: str = "cpu",
    cache_dir: Path | None = None,
    equivalence: Equivalence | None = None,
    readout_scale: ReadoutChoice = None,
    progress: bool = True,
) -> list[LoadedModel]:
    """Load the base that this name means once, and build the model of each start on it.

    The models share the weights of the base and sentence encoders, and nothing else: each may adapt
    other layers. Without `quantisation` it is that of the base which the first posterior was
    trained on. `dtype` is as in `load_base`. Raises as `load_base` and `build_model`.
    """
    first = starts[0].manifest
    if quantisation is None and first is not None:
        quantisation = first.base.quantisation
    loaded = load_base(
        base, quantisation=quantisation, dtype=dtype, device=device, cache_dir=cache_dir, progress=progress
    )
    encoders: dict[str | None, SentenceEncoder] = {}
    models: list[LoadedModel] = []
    for start in starts:
        model = build_model(
            replace(loaded, model=with_shared_weights(loaded.model)),
            start,
            sentences=encoders.get(_config(start.theta).sentence_encoder),
            cache_dir=cache_dir,
            equivalence=equivalence,
            readout_scale=readout_scale,
            progress=progress,
        )
        if model.sentences is not None:
            encoders[model.prior.config.sentence_encoder] = model.sentences
        models.append(LoadedModel(model, loaded.identity, start.manifest))
    return models


def build_model(
    base: LoadedBase,
    start: Start,
    *,
    sentence_encoder: str | None = None,
    sentences: SentenceEncoder | None = None,
    cache_dir: Path | None = None,
    equivalence: Equivalence | None = None,
    readout_scale: ReadoutChoice = None,
    progress: bool = True,
) -> FewShotModel:
    """Build the model of `start` on a base that is loaded.

    A base carries the adapters of one model at a time. The sentence encoder is `sentences`, or else
    `sentence_encoder` or the one that theta names, which is loaded to the device of the base, in its
    dtype. Raises as `check_base`, `load_sentence_encoder` and `FewShotModel`.
    """
    if start.manifest is not None:
        check_base(start.manifest, base.identity)
    theta = start.theta
    if start.point:
        theta = _without_noise(theta)
    sentences = sentences or load_sentence_encoder(
        sentence_encoder or _config(theta).sentence_encoder,
        device=str(base.model.device),
        cache_dir=cache_dir,
        dtype=base.model.dtype,
        progress=progress,
    )
    model = FewShotModel(
        base.model,
        base.tokenizer,
        theta,
        template=start.template,
        defaults=start.defaults,
        equivalence=equivalence,
        sentences=sentences,
        readout_scale=readout_scale,
    )
    if start.point:
        model.prior = model.prior.without_noise()
    return model


def _config(theta: GlobalPosterior | PosteriorConfig) -> PosteriorConfig:
    return theta if isinstance(theta, PosteriorConfig) else theta.config


def _without_noise(theta: GlobalPosterior | PosteriorConfig) -> GlobalPosterior | PosteriorConfig:
    if isinstance(theta, PosteriorConfig):
        return replace(theta, noise=theta.noise.as_point())
    return theta.without_noise()


def check_base(posterior: PosteriorManifest, base: BaseIdentity) -> None:
    """Raise `PosteriorMismatchError` unless the posterior was made for this base at this revision.

    Another quantisation of the base works, somewhat worse: it is logged as a warning.
    """
    made_for = posterior.base
    if made_for == base:
        return
    if replace(made_for, quantisation=base.quantisation) != base:
        raise PosteriorMismatchError(
            f"posterior {posterior.id!r} was made for {made_for.id} at revision {made_for.revision}, "
            f"not for {base.id} at revision {base.revision}"
        )
    _log.warning("posterior %s was trained on %s weights", posterior.id, made_for.quantisation)
