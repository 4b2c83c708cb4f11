"""One adaptation as it was admitted: what it is fitted to, in texts and in tokens, and its parts without some examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from abmll.assurance.folds import Fold
from abmll.text.prompting import EncodedPrompt, LabelledPrompt
from abmll.text.tasks import Example
from service.engine.identity import adapter_id
from service.executors.contract import AdaptJob, ServedModel

if TYPE_CHECKING:
    from abmll.adaptation.settings import AdaptSettings


@dataclass(frozen=True)
class Fitting:
    """A support set, its examples in tokens, and the settings to fit an adapter with.

    `folds` are the parts held out in turn to choose the adapter's temperature, if any.
    """

    served: ServedModel
    support: tuple[Example, ...]
    examples: tuple[LabelledPrompt, ...]
    settings: AdaptSettings
    seed: int
    truncate: bool
    folds: tuple[Fold, ...] = ()

    @property
    def job(self) -> AdaptJob:
        """The job that fits the adapter, named by what determines it."""
        named = adapter_id(
            self.support,
            self.settings,
            self.seed,
            self.served,
            truncate=self.truncate,
            folds=len(self.folds),
        )
        return AdaptJob(named, self.examples, self.settings, self.seed)

    def part(self, kept: Sequence[int]) -> Fitting:
        """The same on the examples at these positions alone."""
        return replace(
            self,
            support=tuple(self.support[i] for i in kept),
            examples=tuple(self.examples[i] for i in kept),
            folds=(),
        )

    def prompts(self, indices: Sequence[int]) -> tuple[EncodedPrompt, ...]:
        """The examples at these positions, which have options, as queries."""
        return tuple(self.examples[i].prompt for i in indices)


def encode_support(
    support: Sequence[Example], served: ServedModel, *, truncate: bool
) -> tuple[LabelledPrompt, ...]:
    """The support in tokens. Raises `abmll.errors.AbmllError`."""
    return tuple(encode_labelled(example, served, truncate=truncate) for example in support)


def encode_labelled(example: Example, served: ServedModel, *, truncate: bool) -> LabelledPrompt:
    """One example in tokens, with the number of its label. Raises `abmll.errors.AbmllError`."""
    prompt = served.encoder.encode_example(example, truncate=truncate)
    return LabelledPrompt(prompt, example.options.index(example.output) if example.options else 0)
