"""Adapters fitted to parts of a support set, asked for the rest: an estimate of the adapter fitted to all of it."""

from __future__ import annotations

from collections.abc import Sequence

from abmll.adapt import AdaptSettings
from abmll.folds import Fold, Scored, scored
from abmll.model import FewShotModel
from abmll.predict import TOKENS_PER_CHUNK
from abmll.tasks import Example


def cross_predict(
    model: FewShotModel,
    support: Sequence[Example],
    folds: Sequence[Fold],
    settings: AdaptSettings | None = None,
    seed: int = 0,
    *,
    samples: int = 8,
    truncate: bool = False,
) -> list[Scored]:
    """Every held-out example as the adapter of the other folds answers it, in the order of the support.

    The folds adapt side by side, and predict side by side. Errors as `FewShotModel.adapt` and `predict`.
    """
    fitting = [model.begin_adapt(fold.support(support), settings, seed, truncate=truncate) for fold in folds]
    while not all(run.done for run in fitting):
        model.step(fitting)
    asking = [
        model.begin_predict(
            run.posterior,
            fold.queries(support),
            samples=samples,
            seed=seed,
            truncate=truncate,
            max_tokens=TOKENS_PER_CHUNK // len(folds),
        )
        for run, fold in zip(fitting, folds, strict=True)
    ]
    while not all(run.done for run in asking):
        model.advance(asking)
    found = [
        row
        for run, fold in zip(asking, folds, strict=True)
        for row in scored(support, fold.held_out, run.predictions())
    ]
    return sorted(found, key=lambda row: row.index)
