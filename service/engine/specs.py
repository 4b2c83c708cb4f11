"""What admission makes of a request: all that decides its job, checked and in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from abmll.adaptation.settings import for_questions
from abmll.assurance.folds import Fold
from abmll.text.prompting import EncodedPrompt, LabelledPrompt
from abmll.text.questions import TypedQuestion
from abmll.text.tasks import Example, Query, examples_by_question
from service.engine.identity import adapter_id
from service.executors.contract import AdaptJob, PredictJob, ServedModel

if TYPE_CHECKING:
    from abmll.adaptation.settings import AdaptSettings
    from abmll.prediction.settings import PredictSettings


@dataclass(frozen=True)
class AdaptationSpec:
    """All that decides an adapter: the support, as texts and in tokens, and how it is fitted.

    Each of `folds` is held out once, to choose the adapter's own temperature. Without folds, the
    adapter has the temperature of the posterior's rule. `refined` decides the adapter that is made
    in the background when this one has answered; None where this one is all that is made.
    `questions` are the adapter's own. `id_key` is the tenant's (see `service.engine.identity`).
    `keep_texts` says whether the adapter is stored with the texts of its support.
    """

    served: ServedModel
    support: tuple[Example, ...]
    examples: tuple[LabelledPrompt, ...]
    settings: AdaptSettings
    seed: int
    truncate: bool
    folds: tuple[Fold, ...] = ()
    questions: tuple[TypedQuestion, ...] = ()
    refined: AdaptationSpec | None = None
    id_key: bytes = b""
    keep_texts: bool = True

    @property
    def job(self) -> AdaptJob:
        """Return the job that fits the adapter to the whole support."""
        named = adapter_id(
            self.support,
            self.settings,
            self.seed,
            self.served,
            truncate=self.truncate,
            folds=len(self.folds),
            questions=self.questions,
            key=self.id_key,
        )
        return AdaptJob(named, self.examples, self.settings, self.seed, self.served.posterior_digest)

    def owned(self, id_key: bytes, *, keep_texts: bool) -> AdaptationSpec:
        """Return the same for the tenant that has this key, the refined adapter too."""
        refined = self.refined.owned(id_key, keep_texts=keep_texts) if self.refined else None
        return replace(self, id_key=id_key, keep_texts=keep_texts, refined=refined)

    def part(self, kept: Sequence[int]) -> AdaptationSpec:
        """Return the same for the examples at these positions alone, without folds."""
        return replace(
            self,
            support=tuple(self.support[i] for i in kept),
            examples=tuple(self.examples[i] for i in kept),
            folds=(),
            refined=None,
        )

    def prompts(self, indices: Sequence[int]) -> tuple[EncodedPrompt, ...]:
        """Return the examples at these positions, which have options, as queries in tokens."""
        return tuple(self.examples[i].prompt for i in indices)


@dataclass(frozen=True)
class PredictionSpec:
    """All that decides predictions but the adapter: queries with their options, and settings.

    `posterior` is the digest of the global posterior that the adapter was made from, by whose
    template `prompts` has each query in tokens; `confidence_kinds` the kind of confidence of each
    answer (`service.gating.confidence`). `warnings` are about what is accepted and may be meant
    otherwise. `fixed_classes` says whether the adapter's examples all have the same options, and
    `answer_tokens` is the length of its longest free-text label: the price depends on them.
    """

    queries: tuple[Query, ...]
    prompts: tuple[EncodedPrompt, ...]
    settings: PredictSettings
    posterior: str
    confidence_kinds: Sequence[str]
    warnings: tuple[str, ...] = ()
    fixed_classes: bool = False
    answer_tokens: int = 0

    def job(self, adapter_id: str) -> PredictJob:
        """Return the job that answers the queries with the adapter."""
        return PredictJob(adapter_id, self.prompts, self.settings, self.posterior)


def encode_support(
    support: Sequence[Example], served: ServedModel, *, truncate: bool
) -> tuple[LabelledPrompt, ...]:
    """Return the support in tokens. Raises `abmll.errors.AbmllError`."""
    return tuple(encode_labelled(example, served, truncate=truncate) for example in support)


def encode_labelled(example: Example, served: ServedModel, *, truncate: bool) -> LabelledPrompt:
    """Return an example in tokens, with the position of its label among its options.

    The position is 0 in free text. Raises `abmll.errors.AbmllError`.
    """
    prompt = served.encoder.encode_example(example, truncate=truncate)
    return LabelledPrompt(prompt, example.options.index(example.output) if example.options else 0)


def for_support(
    full: AdaptSettings, support: Sequence[Example], examples: Sequence[LabelledPrompt]
) -> AdaptSettings:
    """Return the settings of the effort `full` for a support, given as texts and in tokens.

    The steps are enough for all examples of several questions (`for_questions`).
    """
    questions = len(examples_by_question(support))
    if questions < 2:
        return full
    from abmll.decoder.rows import rows_of_inputs  # noqa: PLC0415 - imports torch

    return for_questions(full, len(rows_of_inputs([example.prompt for example in examples])), questions)
