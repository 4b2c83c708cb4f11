"""Adaptation by gradient steps from theta: ABMLL, or whatever else made theta.

From an untrained theta without noise this is ordinary LoRA. From one that Reptile, structured
training or first-order MAML made it is that method at test time: all take the same steps, and their
outer rules are in `abmll/meta/train.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from abmll.adaptation.settings import AdaptSettings, settings_of
from abmll.assurance.folds import Fold, make_folds
from abmll.assurance.held_out import SAMPLES
from abmll.cross_fitting import adapt_at_own_temperature
from abmll.model import FewShotModel
from abmll.posterior.config import ReadoutChoice
from abmll.posterior.posteriors import TaskPosterior
from abmll.text.tasks import Example, Query
from lab.evaluation.cells import Answer, Effort
from lab.evaluation.methods.contract import Method, adaptation_effort, answers_of, prediction_effort


def adapt_timed(
    model: FewShotModel, support: Sequence[Example], settings: AdaptSettings | None, seed: int
) -> tuple[TaskPosterior, Effort]:
    """Adapt as `FewShotModel.adapt`, and return the effort too.

    Without `settings` they are the model's defaults. Inputs that do not fit are cut.
    """
    started, used = time.perf_counter(), settings or model.defaults
    adaptation = model.adapt(support, used, seed, truncate=True)
    seconds = time.perf_counter() - started
    return adaptation.posterior, adaptation_effort(used, len(support), adaptation.support_tokens, seconds)


def adapt_calibrated_timed(
    model: FewShotModel,
    support: Sequence[Example],
    folds: Sequence[Fold],
    settings: AdaptSettings | None,
    seed: int,
) -> tuple[TaskPosterior, Effort]:
    """Adapt as `adapt_timed`, at the temperature that `folds` choose.

    The effort is that of all fits and of their held-out answers.
    """
    started, used = time.perf_counter(), settings or model.defaults
    adaptation, _ = adapt_at_own_temperature(model, support, folds, used, seed, truncate=True)
    seconds, tokens = time.perf_counter() - started, adaptation.support_tokens
    effort = adaptation_effort(used, len(support), tokens, seconds)
    for fold in folds:
        share = len(fold.kept) / len(support)
        effort += adaptation_effort(used, len(fold.kept), round(share * tokens), 0.0)
    return adaptation.posterior, effort + Effort(tokens=SAMPLES * tokens)


@dataclass(frozen=True)
class Adapted(Method):
    """Answers with an adapted posterior.

    `samples` 0 answers with the mean. Without `settings` they are those of `effort`, from those
    that theta is to be served with. With `calibration_folds` that many parts of the support choose
    a temperature for the adapter. With a number as
    `readout_scale`, samples differ in the readout alone, at that scale; with `off`, in every site.
    """

    kind: Literal["adapted"] = "adapted"
    samples: int = 16
    settings: AdaptSettings | None = None
    effort: Literal["instant", "fast", "full"] = "full"
    calibration_folds: int = 0
    readout_scale: ReadoutChoice = None

    def answer(
        self, model: FewShotModel, support: Sequence[Example], queries: Sequence[Query], seed: int
    ) -> tuple[list[Answer], Effort]:
        """See `Method`."""
        folds = make_folds(support, self.calibration_folds) if self.calibration_folds else []
        settings = self.settings or settings_of(self.effort, model.defaults)
        if folds:
            posterior, effort = adapt_calibrated_timed(model, support, folds, settings, seed)
        else:
            posterior, effort = adapt_timed(model, support, settings, seed)
        posterior = posterior.with_readout_scale(self.readout_scale)
        found = model.predict(posterior, queries, samples=self.samples, seed=seed, truncate=True)
        return answers_of(found), effort + prediction_effort(found, self.samples)
