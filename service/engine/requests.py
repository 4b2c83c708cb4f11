"""What the engine is asked for: one record a request, torch-free. Surfaces and the command line translate to these."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from abmll.prediction.settings import PredictSettings
from abmll.text.tasks import Example, Query
from service.gating.confidence import WantedConfidence
from service.gating.records import GateRequest

if TYPE_CHECKING:
    from abmll.adaptation.settings import AdaptSettings


class CacheOutcome(StrEnum):
    """How a request came by its adapter: it was there, it was made, or it was being made by another request."""

    HIT = "hit"
    MISS = "miss"
    JOINED = "joined"


@dataclass(frozen=True)
class AdaptOverrides:
    """Fields of `abmll.adaptation.settings.AdaptSettings` that a request sets; None leaves the served model's value."""

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
    """Answer `queries` with the adapter of this id, or with one made as asked, and decide by `gate`.

    Queries without options take those that all support examples share; without any, they are answered in free text.
    `confidence` None asks for a calibrated one where the adapter has a temperature of its own.
    """

    adapter: str | AdaptRequest
    queries: tuple[Query, ...]
    settings: PredictSettings = field(default_factory=PredictSettings)
    gate: GateRequest = field(default_factory=GateRequest)
    confidence: WantedConfidence = None
    truncate: bool = False
    model: str | None = None


@dataclass(frozen=True)
class DiagnoseRequest:
    """Estimate an adapter on its own support. `folds` None: one an example, or fewer for a larger support."""

    adapter_id: str
    folds: int | None = None
    samples: int = 8
