"""What the engine is asked for, in domain terms. The HTTP surfaces and the command line translate to these."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from abmll.text.tasks import Example, Query
from service.executors.contract import Samples
from service.gating.confidence import Asked
from service.gating.thresholds import Thresholds

if TYPE_CHECKING:
    from abmll.adaptation.settings import AdaptSettings


class CacheOutcome(StrEnum):
    """How a request came by its adapter: it was there, it was made, or it was being made by another request."""

    HIT = "hit"
    MISS = "miss"
    JOINED = "joined"


@dataclass(frozen=True)
class AdaptOverrides:
    """Fields of `abmll.adapt.AdaptSettings` that a request sets itself; None leaves the served model's value."""

    steps: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    beta: float | None = None

    def apply(self, defaults: AdaptSettings) -> AdaptSettings:
        """`defaults` with what is set here."""
        return replace(defaults, **{name: value for name, value in asdict(self).items() if value is not None})


@dataclass(frozen=True)
class AdaptRequest:
    """Adapt to `support`. `model` None is the one that is served.

    With `calibration_folds` the adapter has the temperature that its own held-out examples choose.
    """

    support: tuple[Example, ...]
    overrides: AdaptOverrides = AdaptOverrides()
    seed: int = 0
    truncate: bool = False
    model: str | None = None
    calibration_folds: int | None = None


@dataclass(frozen=True)
class PredictRequest:
    """Answer `queries` with the adapter of this id, or with one made as asked.

    Queries without options take those that all support examples share; without any, they are answered in free text.
    `samples` "auto" draws until `gate` can be decided; what is answered does not otherwise depend on `gate`.
    `confidence` None asks for a calibrated one where there is a calibrator that covers the prediction.
    """

    adapter: str | AdaptRequest
    queries: tuple[Query, ...]
    samples: Samples = 16
    seed: int = 0
    max_new_tokens: int = 32
    truncate: bool = False
    model: str | None = None
    gate: Thresholds = field(default_factory=Thresholds)
    answers_per_sample: int = 1
    confidence: Asked = None


@dataclass(frozen=True)
class DiagnoseRequest:
    """Estimate an adapter on its own support. `folds` None: one an example, or fewer for a larger support."""

    adapter_id: str
    folds: int | None = None
    samples: int = 8
