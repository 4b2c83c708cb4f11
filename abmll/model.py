"""A base model with a global posterior, ready to adapt and to predict: what a server or a notebook holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from abmll.adapt import Adaptation, AdaptSettings, LabelledPrompt, adapt
from abmll.backbone import Backbone
from abmll.errors import PosteriorMismatchError
from abmll.posterior import AdapterConfig, GlobalPosterior, TaskPosterior
from abmll.predict import Prediction, predict_options, predict_text
from abmll.prompting import PromptEncoder, PromptTemplate
from abmll.tasks import Example, Query, check_support


class FewShotModel:
    """Adapts to support examples and predicts with Monte Carlo samples. One thread owns it; the `encoder` may be shared."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prior: GlobalPosterior | AdapterConfig,
        *,
        template: PromptTemplate | None = None,
        defaults: AdaptSettings | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """Wrap `model` in place. `prior` is a trained theta, or a configuration for an untrained one (B = 0).

        Raises `PosteriorMismatchError` if theta was made for other layers, `UnsupportedModelError` for an unknown layout.
        """
        config = prior if isinstance(prior, AdapterConfig) else prior.config
        self.backbone = Backbone(model, config)
        self.prior = (
            GlobalPosterior.untrained(config, self.backbone.sites)
            if isinstance(prior, AdapterConfig)
            else prior
        )
        if self.prior.sites != self.backbone.sites:
            raise PosteriorMismatchError("the posterior was made for a model with other layers or sizes")
        self.defaults = defaults or AdaptSettings()
        self.encoder = PromptEncoder(
            tokenizer, template or PromptTemplate(), max_tokens or self.backbone.max_tokens
        )

    def encode_support(self, support: Sequence[Example], *, truncate: bool = False) -> list[LabelledPrompt]:
        """The support in tokens. Raises `SupportError`, `OptionsError` or `PromptTooLongError`."""
        check_support(support)
        return [
            LabelledPrompt(
                self.encoder.encode_example(example, truncate=truncate),
                example.options.index(example.output) if example.options else 0,
            )
            for example in support
        ]

    def adapt(
        self,
        support: Sequence[Example],
        settings: AdaptSettings | None = None,
        seed: int = 0,
        *,
        truncate: bool = False,
        on_step: Callable[[int], None] | None = None,
    ) -> Adaptation:
        """phi fitted to `support` from theta; the same arguments give the same posterior. Errors as `encode_support`."""
        examples = self.encode_support(support, truncate=truncate)
        return adapt(self.backbone, self.prior, examples, settings or self.defaults, seed, on_step)

    def predict(
        self,
        posterior: TaskPosterior | None,
        queries: Sequence[Query],
        *,
        samples: int = 16,
        seed: int = 0,
        max_new_tokens: int = 32,
        truncate: bool = False,
    ) -> list[Prediction]:
        """A prediction for each query; `posterior` None is theta itself. `samples` = 0 uses the mean, without noise.

        Raises `OptionsError` or `PromptTooLongError`.
        """
        posterior = posterior or TaskPosterior.start(self.prior)
        prompts = [
            self.encoder.encode(
                query, truncate=truncate, reserve_tokens=0 if query.options else max_new_tokens
            )
            for query in queries
        ]
        results: dict[int, Prediction] = {}
        with_options = [i for i, query in enumerate(queries) if query.options]
        free_text = [i for i, query in enumerate(queries) if not query.options]
        if with_options:
            options = [queries[i].options for i in with_options]
            chosen = [prompts[i] for i in with_options]
            found = predict_options(self.backbone, posterior, chosen, options, samples=samples, seed=seed)
            results |= dict(zip(with_options, found, strict=True))
        if free_text:
            chosen = [prompts[i] for i in free_text]
            found = predict_text(
                self.backbone,
                posterior,
                chosen,
                self.encoder,
                samples=samples,
                seed=seed,
                max_new_tokens=max_new_tokens,
            )
            results |= dict(zip(free_text, found, strict=True))
        return [results[i] for i in range(len(queries))]
