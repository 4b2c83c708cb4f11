"""Answers of the engine: adapters, decided predictions and diagnoses, with the times they took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from service.engine.requests import CacheOutcome
from service.gating.confidence import CALIBRATED, HELD_OUT

if TYPE_CHECKING:
    from abmll.assurance.diagnostics import Diagnosis
    from model_store.adapters.store import StoredAdapter
    from service.gating.decisions import DecidedPrediction
    from service.gating.records import CalibratedGate


@dataclass
class Timings:
    """Seconds that one request waited for a worker, adapted, predicted, and took in all."""

    queue_seconds: float = 0.0
    adapt_seconds: float = 0.0
    predict_seconds: float = 0.0
    total_seconds: float = 0.0

    def by_part(self) -> dict[str, float]:
        """Return the seconds by what they were spent on."""
        return {name.removesuffix("_seconds"): seconds for name, seconds in vars(self).items()}


@dataclass(frozen=True)
class Obtained:
    """An adapter, and how a request came by it.

    `refines_to` is the id of the adapter that is made from now on in the background, to take the
    place of this one; None where there is none.
    """

    adapter: StoredAdapter
    cache: CacheOutcome
    timings: Timings
    refines_to: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Answered(Obtained):
    """Decided predictions in the order of the queries.

    `calibrated_gate` is None where the request did not need the adapter's calibration. `warnings`
    are about this request; the adapter's manifest has its own. `model` is the version of the name
    that the request named its adapter by, such as `tickets@3`.
    """

    predictions: Sequence[DecidedPrediction]
    calibrated_gate: CalibratedGate | None = None
    warnings: Sequence[str] = ()
    model: str | None = None

    @property
    def calibrator(self) -> str | None:
        """Return the source of calibrated confidences; None where no confidence is calibrated."""
        calibrated = any(row.confidence.kind == CALIBRATED for row in self.predictions)
        return HELD_OUT if calibrated else None


@dataclass(frozen=True)
class Decided:
    """Decided answers by input, and in each by question, in the orders of the request.

    `adapter_id` is None where no adapter answered, and `model` what answered: the base model, an
    adapter's id, or a name with its version. `learned` says of each question whether the adapter
    has cases of it; a question without is answered zero-shot. `tokens_by_input` has the number of
    prompt tokens that were scored for each input, each counted once. `calibrated_gates` has what
    each question's calibration gave, None where the request did not need it. `refines_to` is as in
    `Obtained`.
    """

    rows: Sequence[Sequence[DecidedPrediction]]
    learned: Sequence[bool]
    adapter_id: str | None
    model: str
    cache: CacheOutcome
    timings: Timings
    tokens_by_input: Sequence[int]
    warnings: Sequence[str] = ()
    calibrated_gates: Sequence[CalibratedGate | None] = ()
    refines_to: str | None = None

    @property
    def tokens(self) -> int:
        """Return the number of prompt tokens that were scored for all inputs."""
        return sum(self.tokens_by_input)

    def about(self, number: int) -> Self:
        """Return the same for the input at `number` alone."""
        return replace(self, rows=[self.rows[number]], tokens_by_input=[self.tokens_by_input[number]])


@dataclass(frozen=True)
class Diagnosed(Obtained):
    """A diagnosis of an adapter; `cache` says how the request came by the diagnosis."""

    diagnosis: Diagnosis
