"""Cross-fitting: adapters of parts of a support answer the rest of it.

Their answers estimate how good the adapter of the whole support is, and choose its temperature.
"""

from __future__ import annotations

from collections.abc import Sequence

from abmll.adaptation.run import Adaptation
from abmll.adaptation.settings import AdaptSettings
from abmll.assurance.folds import Fold, HeldOutAnswer, held_out_answers
from abmll.assurance.held_out import SAMPLES, HeldOutSummary, at_own_temperature
from abmll.model import FewShotModel
from abmll.prediction.option_runs import TOKENS_PER_CHUNK
from abmll.text.tasks import Example


def cross_predict(
    model: FewShotModel,
    support: Sequence[Example],
    folds: Sequence[Fold],
    settings: AdaptSettings | None = None,
    seed: int = 0,
    *,
    samples: int = 8,
    truncate: bool = False,
) -> list[HeldOutAnswer]:
    """Return the answer to every held-out example by the adapter of the other folds.

    The order is that of the support. The folds adapt in one batch, and predict in one batch. Raises
    as `FewShotModel.adapt` and `FewShotModel.predict`.
    """
    fitted = model.adapt_many([fold.support(support) for fold in folds], settings, seed, truncate=truncate)
    return _held_out(model, support, folds, fitted, seed, samples=samples, truncate=truncate)


def adapt_at_own_temperature(
    model: FewShotModel,
    support: Sequence[Example],
    folds: Sequence[Fold],
    settings: AdaptSettings | None = None,
    seed: int = 0,
    *,
    samples: int = SAMPLES,
    truncate: bool = False,
) -> tuple[Adaptation, HeldOutSummary]:
    """Adapt to all of `support`, at the temperature that its held-out answers choose.

    The support and its parts adapt in one batch. `folds` has at least one fold. Raises as
    `FewShotModel.adapt` and `FewShotModel.predict`.
    """
    parts = [support, *(fold.support(support) for fold in folds)]
    whole, *fitted = model.adapt_many(parts, settings, seed, truncate=truncate)
    answers = _held_out(model, support, folds, fitted, seed, samples=samples, truncate=truncate)
    return at_own_temperature(whole, support, model.encode_support(support, truncate=truncate), answers)


def _held_out(
    model: FewShotModel,
    support: Sequence[Example],
    folds: Sequence[Fold],
    fitted: Sequence[Adaptation],
    seed: int,
    *,
    samples: int,
    truncate: bool,
) -> list[HeldOutAnswer]:
    runs = [
        model.begin_predict(
            adaptation.posterior,
            fold.queries(support),
            samples=samples,
            seed=seed,
            truncate=truncate,
            max_tokens=TOKENS_PER_CHUNK // len(folds),
        )
        for adaptation, fold in zip(fitted, folds, strict=True)
    ]
    while not all(run.done for run in runs):
        model.advance(runs)
    found = [
        row
        for run, fold in zip(runs, folds, strict=True)
        for row in held_out_answers(support, fold.held_out, run.predictions())
    ]
    return sorted(found, key=lambda row: row.index)
