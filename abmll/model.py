"""The facade: a base model with a global posterior, which adapts and predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from abmll.adaptation.run import Adaptation, AdaptRun, adapt_step, batch_order
from abmll.adaptation.settings import AdaptSettings, for_questions
from abmll.adaptation.support import Prepared, prepare
from abmll.decoder.backbone import Backbone
from abmll.errors import PosteriorMismatchError
from abmll.posterior.config import PosteriorConfig, ReadoutChoice
from abmll.posterior.noise.draws import check_readout, mean_draw
from abmll.posterior.noise.families import family_of
from abmll.posterior.posteriors import GlobalPosterior, TaskPosterior
from abmll.prediction.option_runs import TOKENS_PER_CHUNK
from abmll.prediction.run import Prediction, QueryRun, advance
from abmll.prediction.semantic import Equivalence
from abmll.prediction.settings import PredictSettings
from abmll.similarity.features import Features
from abmll.similarity.sentence_encoder import SentenceEncoder
from abmll.text.prompting import EncodedPrompt, LabelledPrompt, PromptEncoder, PromptTemplate
from abmll.text.tasks import Example, Query, check_support


class FewShotModel:
    """Adapts to support examples, and predicts with Monte Carlo samples.

    One thread owns it. Its `encoder` may be shared between threads.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prior: GlobalPosterior | PosteriorConfig,
        *,
        template: PromptTemplate | None = None,
        defaults: AdaptSettings | None = None,
        max_tokens: int | None = None,
        equivalence: Equivalence | None = None,
        sentences: SentenceEncoder | None = None,
        readout_scale: ReadoutChoice = None,
    ) -> None:
        """Wrap `model` in place.

        `prior` is a trained theta, or a configuration, which gives an untrained one (B = 0).
        `equivalence` says which free-text answers mean the same; by default, those that are the
        same text, normalised. `sentences` is the sentence encoder that `prior` names, if it names
        one. `readout_scale` says how samples of every posterior differ (`ReadoutChoice`). Raises
        `PosteriorMismatchError` where theta was made for other layers, names an unknown noise
        family, or needs a sentence encoder or a readout that is not there, and
        `UnsupportedModelError` for an unknown architecture.
        """
        config = prior if isinstance(prior, PosteriorConfig) else prior.config
        family_of(config.noise)  # raises for an unknown family before the first sample
        self.backbone = Backbone(model, config.layout)
        self.prior = (
            GlobalPosterior.untrained(config, self.backbone.sites)
            if isinstance(prior, PosteriorConfig)
            else prior
        )
        if self.prior.sites != self.backbone.sites:
            raise PosteriorMismatchError("the posterior was made for a model with other layers or sizes")
        self._theta: tuple[GlobalPosterior, Tensor] | None = None  # and its values on the device
        self.readout_scale = readout_scale
        self.backbone.global_draw = lambda rows: mean_draw(self.prior, self.prior.values, rows)
        if wrong := check_readout(self.sampled(config), has_readout=self.backbone.has_readout):
            raise PosteriorMismatchError(wrong)
        if config.sentence_encoder and sentences is None:
            raise PosteriorMismatchError(f"the posterior was made with the encoder {config.sentence_encoder}")
        self.defaults = defaults or AdaptSettings()
        self.equivalence, self.sentences = equivalence, sentences
        self.encoder = PromptEncoder(
            tokenizer, template or PromptTemplate(), max_tokens or self.backbone.max_tokens
        )

    @property
    def features(self) -> Features:
        """Return the feature function: what the Gaussian process sees of a prompt."""
        return Features(self.prior.whitening, self.sentences if self.prior.config.sentence_encoder else None)

    @property
    def paired(self) -> bool:
        """Return whether samples come in antithetic pairs."""
        return family_of(self.prior.config.noise).paired

    def encode_support(self, support: Sequence[Example], *, truncate: bool = False) -> list[LabelledPrompt]:
        """Return the support in tokens.

        Raises `SupportError`, `OptionsError` or `PromptTooLongError`.
        """
        check_support(support)
        return [
            LabelledPrompt(
                self.encoder.encode_example(example, truncate=truncate),
                example.options.index(example.output) if example.options else 0,
            )
            for example in support
        ]

    def begin_adapt(
        self,
        support: Sequence[Example],
        settings: AdaptSettings | None = None,
        seed: int = 0,
        *,
        truncate: bool = False,
    ) -> AdaptRun:
        """Return an adaptation before its first step, with the trunk run over its support.

        Raises as `encode_support`.
        """
        return self.start_adapt(self.encode_support(support, truncate=truncate), settings, seed)

    def start_adapt(
        self, examples: Sequence[LabelledPrompt], settings: AdaptSettings | None = None, seed: int = 0
    ) -> AdaptRun:
        """Return what `begin_adapt` does, for support that is encoded already."""
        return self.adapt_prepared(prepare(self.backbone, examples), settings, seed)

    def adapt_prepared(
        self, prepared: Prepared, settings: AdaptSettings | None = None, seed: int = 0
    ) -> AdaptRun:
        """Return what `begin_adapt` does, for support that is prepared already."""
        settings = settings or for_questions(self.defaults, len(prepared.rows), prepared.questions)
        batches = batch_order(len(prepared.rows), settings.batch_size, settings.steps, seed)
        return AdaptRun.start(
            self.backbone, self.prior, prepared, settings, batches, seed, features=self.features
        )

    def step(self, runs: Sequence[AdaptRun]) -> None:
        """Make one gradient step of every run that is not done, in one batch."""
        adapt_step(self.backbone, [run for run in runs if not run.done])

    def adapt(
        self,
        support: Sequence[Example],
        settings: AdaptSettings | None = None,
        seed: int = 0,
        *,
        truncate: bool = False,
        on_step: Callable[[int], None] | None = None,
    ) -> Adaptation:
        """Fit phi to `support` from theta. The same arguments give the same posterior.

        `on_step` is called with the number of each step. Raises as `encode_support`.
        """
        run = self.begin_adapt(support, settings, seed, truncate=truncate)
        while not run.done:
            self.step([run])
            if on_step:
                on_step(len(run.losses))
        return run.result()

    def adapt_many(
        self,
        supports: Sequence[Sequence[Example]],
        settings: AdaptSettings | None = None,
        seed: int = 0,
        *,
        truncate: bool = False,
    ) -> list[Adaptation]:
        """Adapt to each support, all together: the same as one by one, up to rounding.

        Raises as `encode_support`.
        """
        runs = [self.begin_adapt(support, settings, seed, truncate=truncate) for support in supports]
        while not all(run.done for run in runs):
            self.step(runs)
        return [run.result() for run in runs]

    def encode_queries(
        self, queries: Sequence[Query], settings: PredictSettings, *, truncate: bool = False
    ) -> list[EncodedPrompt]:
        """Return the queries in tokens. Raises `OptionsError` or `PromptTooLongError`."""
        return [
            self.encoder.encode(query, truncate=truncate, max_new_tokens=settings.max_new_tokens)
            for query in queries
        ]

    def begin_predict(
        self,
        posterior: TaskPosterior | None,
        queries: Sequence[Query],
        *,
        truncate: bool = False,
        max_tokens: int = TOKENS_PER_CHUNK,
        **settings: Any,
    ) -> QueryRun:
        """Return a prediction before its first unit; see `predict`."""
        chosen = PredictSettings(**settings)
        prompts = self.encode_queries(queries, chosen, truncate=truncate)
        return self.start_predict(posterior, prompts, chosen, max_tokens)

    def start_predict(
        self,
        posterior: TaskPosterior | None,
        prompts: Sequence[EncodedPrompt],
        settings: PredictSettings,
        max_tokens: int = TOKENS_PER_CHUNK,
    ) -> QueryRun:
        """Return what `begin_predict` does, for queries that are encoded already."""
        posterior = posterior or TaskPosterior.unmoved(self.prior)
        values = self._values_on_device(posterior)
        return QueryRun(
            replace(posterior, values=values, config=self.sampled(posterior.config)),
            prompts,
            settings,
            self.encoder,
            equivalence=self.equivalence,
            max_tokens=max_tokens,
            features=self.features,
        )

    def _values_on_device(self, posterior: TaskPosterior) -> Tensor:
        """Return the values [P]. Those of theta are copied to the device once."""
        device = self.backbone.device
        if posterior.has_values:
            return posterior.values.to(device)
        if self._theta is None or self._theta[0] is not self.prior:
            self._theta = self.prior, self.prior.values.to(device)
        return self._theta[1]

    def sampled(self, config: PosteriorConfig) -> PosteriorConfig:
        """Return the configuration with the noise that this model samples."""
        return replace(config, noise=config.noise.sampled(self.readout_scale))

    def advance(self, runs: Sequence[QueryRun]) -> None:
        """Do one unit of every run that is not done, with the chunks of options in one batch."""
        advance(self.backbone, [run for run in runs if not run.done])

    def predict(
        self,
        posterior: TaskPosterior | None,
        queries: Sequence[Query],
        *,
        truncate: bool = False,
        **settings: Any,
    ) -> list[Prediction]:
        """Return a prediction for each query, by `posterior` or by theta (None).

        `settings` are the fields of `PredictSettings`. Raises `OptionsError` or
        `PromptTooLongError`.
        """
        run = self.begin_predict(posterior, queries, truncate=truncate, **settings)
        while not run.done:
            self.advance([run])
        return run.predictions()

    def predict_many(
        self, requests: Sequence[tuple[TaskPosterior | None, Sequence[Query]]], **settings: Any
    ) -> list[list[Prediction]]:
        """Predict for several posteriors together: the same as one by one, up to rounding.

        `requests` are posteriors with their queries. Raises as `predict`.
        """
        share = TOKENS_PER_CHUNK // max(1, len(requests))
        runs = [
            self.begin_predict(posterior, queries, max_tokens=share, **settings)
            for posterior, queries in requests
        ]
        while not all(run.done for run in runs):
            self.advance(runs)
        return [run.predictions() for run in runs]
