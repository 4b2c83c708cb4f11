"""What is asked of calibrated gates, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from abmll.assurance.certificates import Certificate, CoverageThreshold, NotYet
from abmll.assurance.conformal import ConformalQuantile
from abmll.text.tasks import Example
from service.executors.contract import Samples
from service.gating.state import Conditions, Counts
from service.gating.thresholds import Thresholds

if TYPE_CHECKING:
    from model_store.adapters.manifest import AdapterManifest

USUAL_DELTA = 0.1
USUAL_TARGETS = (0.02, 0.05, 0.1, 0.2)
USUAL_ALPHAS = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Ask:
    """What a predict request wants of the adapter's calibration; None asks nothing."""

    target_error: float | None = None
    delta: float = USUAL_DELTA
    target_coverage: float | None = None
    alpha: float | None = None


@dataclass(frozen=True)
class CalibrateRequest:
    """Labelled examples for an adapter, and how to predict them.

    `replace` begins anew instead of adding; `more_follow` says that nothing is to be certified before the next call.
    """

    adapter_id: str
    examples: tuple[Example, ...]
    samples: Samples = 16
    seed: int = 0
    max_new_tokens: int = 32
    truncate: bool = False
    replace: bool = False
    more_follow: bool = False


@dataclass(frozen=True)
class Opened:
    """What a request was granted: the calibration it saw, and the threshold, certificate and quantile from it."""

    manifest: AdapterManifest
    lineage: str
    conditions: Conditions
    calibration_id: str
    version: int
    gate: Certificate | CoverageThreshold | None
    quantile: ConformalQuantile | None

    @property
    def thresholds(self) -> Thresholds:
        """The gate to decide with."""
        return Thresholds() if self.gate is None else Thresholds(min_confidence=self.gate.threshold)


@dataclass(frozen=True)
class Noted:
    """What is added to one prediction. `id` is None where the calibration went away meanwhile, so that nothing was logged."""

    id: str | None
    asked: bool
    options_in_set: tuple[str, ...] | None


@dataclass(frozen=True)
class CalibrationView:
    """A calibration as it stands; `accuracy` and the rest are None and empty while more examples are announced."""

    id: str
    adapter_id: str
    version: int
    conditions: Conditions
    n: int
    feedback: int
    held: bool
    revoked: str | None
    accuracy: float | None
    certificates: Mapping[float, Certificate | NotYet]
    quantiles: Sequence[ConformalQuantile]
    counts: Counts
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class FeedbackOutcome:
    """What became of labels: new ones, those of them that were asked for, and those that were known already."""

    stored: int
    asked: int
    known: int
    view: CalibrationView
