"""Averages over several point models: ensembles of LoRA, and dropout at prediction.

Both answer with the mean of the members' probabilities. Their mutual information is that between
answer and member.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from abmll.adaptation.settings import AdaptSettings
from abmll.errors import AbmllError
from abmll.model import FewShotModel
from abmll.posterior.posteriors import GlobalPosterior, TaskPosterior
from abmll.prediction.run import Prediction
from abmll.prediction.uncertainty import summarise
from abmll.seeds import derive_seed
from abmll.text.draws import draw_uniformly
from abmll.text.tasks import Example, Query
from lab.evaluation.cells import Answer, Effort
from lab.evaluation.methods.adapted import adapt_timed
from lab.evaluation.methods.contract import Method, answers_of, prediction_effort


def average(members: Sequence[Sequence[Prediction]]) -> list[Prediction]:
    """Return one prediction an item from those of every member.

    Its number of samples is that of the members.
    """
    return [
        replace(
            found[0],
            predictive=summarise(
                found[0].predictive.options,
                torch.tensor([member.predictive.probabilities for member in found]),
                samples=len(found),
            ),
        )
        for found in zip(*members, strict=True)
    ]


@dataclass(frozen=True)
class Ensemble(Method):
    """Averages LoRAs that are fitted `members` times (Lakshminarayanan et al. 2017).

    Each member has its own order of examples and its own noise. With `start` `random` a member
    begins at its own random A. That needs an untrained theta, since its values are not used, and
    one without noise, which the members would be fitted under (else `AbmllError`). With `theta`
    each begins at theta. `share` is the fraction of the support, drawn anew, that a member sees
    (bagging, Breiman 1996).
    """

    kind: Literal["ensemble"] = "ensemble"
    members: int = 5
    start: Literal["random", "theta"] = "random"
    share: float = 1.0
    settings: AdaptSettings | None = None

    def answer(
        self, model: FewShotModel, support: Sequence[Example], queries: Sequence[Query], seed: int
    ) -> tuple[list[Answer], Effort]:
        """See `Method`."""
        prior, effort, found = model.prior, Effort(), []
        if self.start == "random" and not prior.config.noise.is_point:
            raise AbmllError("an ensemble from random starts is of points: give it a theta without noise")
        try:
            for member in range(self.members):
                start = derive_seed(seed, "member", member)
                if self.start == "random":
                    model.prior = GlobalPosterior.untrained(prior.config, prior.sites, start).without_noise()
                seen = draw_uniformly(support, max(2, round(self.share * len(support))), start)
                posterior, spent = adapt_timed(model, seen, self.settings, start)
                found.append(model.predict(posterior, queries, samples=0, truncate=True))
                effort = effort + spent + prediction_effort(found[-1], 0)
        finally:
            model.prior = prior
        return answers_of(average(found)), effort


@dataclass(frozen=True)
class Dropout(Method):
    """Averages over dropout on the adapters' input (Gal and Ghahramani 2016) at prediction.

    A mask drops columns of A for a whole sequence. Adaptation runs without dropout, which
    `FewShotModel` does not have. Such masks are known as dropout injection.
    """

    kind: Literal["dropout"] = "dropout"
    samples: int = 10
    rate: float = 0.1
    settings: AdaptSettings | None = None

    def answer(
        self, model: FewShotModel, support: Sequence[Example], queries: Sequence[Query], seed: int
    ) -> tuple[list[Answer], Effort]:
        """See `Method`."""
        posterior, effort = adapt_timed(model, support, self.settings, seed)
        found = [
            model.predict(masked, queries, samples=0, truncate=True)
            for masked in masked_posteriors(posterior, self.rate, self.samples, seed)
        ]
        for predictions in found:
            effort = effort + prediction_effort(predictions, 0)
        return answers_of(average(found)), effort


def masked_posteriors(
    posterior: TaskPosterior, rate: float, samples: int, seed: int
) -> Iterator[TaskPosterior]:
    """Yield `posterior` with columns of every mean A dropped with probability `rate`.

    The other columns are divided by 1 - `rate`.
    """
    for sample in range(samples):
        generator = torch.Generator().manual_seed(derive_seed(seed, "dropout", sample))
        values = posterior.values.clone()
        masked = TaskPosterior(posterior.config, posterior.sites, values)
        for tensors in masked.by_site():  # views of `values`
            kept = torch.rand(tensors.mean_a.shape[-1], generator=generator) >= rate
            tensors.mean_a.mul_(kept / (1 - rate))
        yield masked
