"""Adaptation by gradient steps from theta: ABMLL, or whatever else made theta.

From an untrained theta without noise this is ordinary LoRA; from one that Reptile, structured training or first-order MAML
left it is that method at test time (all of them take the same steps; `abmll/meta/train.py` has their outer rules).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from abmll.adapt import AdaptSettings
from abmll.evaluation.methods.contract import adaptation_effort, answers_of, prediction_effort
from abmll.evaluation.records import Answer, Effort
from abmll.model import FewShotModel
from abmll.posterior import TaskPosterior
from abmll.tasks import Example, Query


def adapt_timed(
    model: FewShotModel, support: Sequence[Example], settings: AdaptSettings | None, seed: int
) -> tuple[TaskPosterior, Effort]:
    """The facade's adaptation (with its defaults where `settings` is None), and its effort."""
    started, used = time.perf_counter(), settings or model.defaults
    adaptation = model.adapt(support, used, seed, truncate=True)
    seconds = time.perf_counter() - started
    return adaptation.posterior, adaptation_effort(used, len(support), adaptation.support_tokens, seconds)


@dataclass(frozen=True)
class Adapted:
    """`samples` = 0 predicts with the mean. `settings` None are those that theta is to be served with."""

    kind: Literal["adapted"] = "adapted"
    samples: int = 16
    settings: AdaptSettings | None = None

    def answer(
        self, model: FewShotModel, support: Sequence[Example], queries: Sequence[Query], seed: int
    ) -> tuple[list[Answer], Effort]:
        """See `Method`."""
        posterior, effort = adapt_timed(model, support, self.settings, seed)
        found = model.predict(posterior, queries, samples=self.samples, seed=seed, truncate=True)
        return answers_of(found), effort + prediction_effort(found, self.samples)
