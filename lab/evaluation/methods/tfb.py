"""A variance without training, after TFB (Shi et al. 2025).

Around the mean of an adapted LoRA every weight gets the same standard deviation: the largest one
under which the support's NLL, of the averaged predictions, rises by at most `tolerance`. TFB itself
puts the noise into A, in the basis of an SVD of the adapter; here it is on the weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from abmll.adaptation.settings import AdaptSettings
from abmll.model import FewShotModel
from abmll.posterior.posteriors import TaskPosterior
from abmll.prediction.run import Prediction
from abmll.text.tasks import Example, Query
from lab.evaluation.cells import Answer, Effort
from lab.evaluation.methods.adapted import adapt_timed
from lab.evaluation.methods.contract import Method, answers_of, prediction_effort


def largest_within(rises: Callable[[float], bool], low: float, high: float, halvings: int) -> float:
    """Return the largest scale in [low, high] at which `rises` is false.

    It bisects the logarithm of the scale `halvings` times, and returns the end at which `rises` was
    false. It returns 0 where `rises` is true at `low`.
    """
    if rises(low):
        return 0.0
    if not rises(high):
        return high
    for _ in range(halvings):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if rises(middle) else (middle, high)
    return low


@dataclass(frozen=True)
class IsotropicNoise(Method):
    """Answers with samples of isotropic noise around an adapted LoRA.

    `smallest` and `largest` bound the standard deviation of a weight. `tolerance` is relative to
    the NLL without noise.
    """

    kind: Literal["tfb"] = "tfb"
    samples: int = 16
    tolerance: float = 0.003
    smallest: float = 1e-4
    largest: float = 0.3
    halvings: int = 6
    settings: AdaptSettings | None = None

    def answer(
        self, model: FewShotModel, support: Sequence[Example], queries: Sequence[Query], seed: int
    ) -> tuple[list[Answer], Effort]:
        """See `Method`."""
        posterior, effort = adapt_timed(model, support, self.settings, seed)
        flat = isotropic(posterior)

        def predict(asked: Sequence[Query], scale: float) -> list[Prediction]:
            nonlocal effort
            noise = flat.with_noise_scale(scale)
            samples = self.samples if scale else 0
            found = model.predict(noise, asked, samples=samples, seed=seed, truncate=True)
            effort = effort + prediction_effort(found, samples)
            return found

        known = [example.query for example in support]
        limit = (1 + self.tolerance) * support_nll(predict(known, 0.0), support)
        scale = largest_within(
            lambda scale: support_nll(predict(known, scale), support) > limit,
            self.smallest,
            self.largest,
            self.halvings,
        )
        return answers_of(predict(queries, scale)), effort


def isotropic(posterior: TaskPosterior) -> TaskPosterior:
    """Return the same mean with a standard deviation of 1 for every weight.

    `with_noise_scale` then sets it.
    """
    noise = replace(posterior.config.noise.in_training(), family="weight", offset=1.0)
    config = replace(posterior.config, noise=noise)
    values = posterior.values.clone()
    for tensors in TaskPosterior(config, posterior.sites, values).by_site():
        tensors.spread_a.zero_()
        tensors.spread_b.zero_()
    return TaskPosterior(config, posterior.sites, values)


def support_nll(predictions: Sequence[Prediction], support: Sequence[Example]) -> float:
    """Return the mean NLL in nats of the support's labels."""
    losses = [
        -math.log(max(found.predictive.probabilities[found.predictive.options.index(example.output)], 1e-300))
        for found, example in zip(predictions, support, strict=True)
    ]
    return sum(losses) / len(losses)
