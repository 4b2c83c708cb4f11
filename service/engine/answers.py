"""What the engine answers: adapters, decided predictions and diagnoses, with how the request came by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.engine.requests import CacheOutcome
from service.gating.confidence import CALIBRATED, HELD_OUT

if TYPE_CHECKING:
    from abmll.assurance.diagnostics import Diagnosis
    from model_store.adapters.store import StoredAdapter
    from service.gating.decisions import DecidedPrediction
    from service.gating.records import Grant


@dataclass
class Timings:
    """Seconds that one request spent waiting for the model, adapting and predicting, and in all."""

    queue_seconds: float = 0.0
    adapt_seconds: float = 0.0
    predict_seconds: float = 0.0
    total_seconds: float = 0.0


@dataclass(frozen=True)
class Obtained:
    """An adapter and how a request came by it."""

    adapter: StoredAdapter
    cache: CacheOutcome
    timings: Timings


@dataclass(frozen=True)
class Answered(Obtained):
    """Decided predictions in the order of the queries, and what the adapter's calibration granted, if it was needed."""

    predictions: Sequence[DecidedPrediction]
    grant: Grant | None = None

    @property
    def calibrator(self) -> str | None:
        """What calibrated the confidences, where any is calibrated."""
        calibrated = any(row.confidence.kind == CALIBRATED for row in self.predictions)
        return HELD_OUT if calibrated else None


@dataclass(frozen=True)
class Diagnosed(Obtained):
    """A diagnosis of an adapter; `cache` says how the request came by the diagnosis."""

    diagnosis: Diagnosis
