"""What is asked of gates, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from abmll.prediction.settings import PredictSettings, Thresholds
from abmll.text.tasks import Example

if TYPE_CHECKING:
    from abmll.assurance.certificates import Certificate, CoverageThreshold, NotYet
    from abmll.assurance.conformal import ConformalQuantile
    from model_store.adapters.manifest import AdapterManifest
    from service.gating.state import Conditions, Counts

USUAL_DELTA = 0.1
USUAL_TARGETS = (0.02, 0.05, 0.1, 0.2)
USUAL_ALPHAS = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class GateRequest:
    """The gate that a predict request asks for.

    `thresholds` decide unless a threshold from the adapter's calibration is asked for: one that is
    certified for `target_error` (wrong with probability `delta` over the labels), or one that keeps
    `target_coverage`. `alpha` asks for a prediction set, `log` for predictions to send labels for.
    """

    thresholds: Thresholds = field(default_factory=Thresholds)
    target_error: float | None = None
    delta: float = USUAL_DELTA
    target_coverage: float | None = None
    alpha: float | None = None
    log: bool = False

    @property
    def promises(self) -> bool:
        """Whether something is asked for that the calibration has to grant."""
        return any(asked is not None for asked in (self.target_error, self.target_coverage, self.alpha))

    @property
    def needs_calibration(self) -> bool:
        """Whether the adapter has to be calibrated."""
        return self.log or self.promises


@dataclass(frozen=True)
class CalibrateRequest:
    """Labelled examples for an adapter, and how to predict them.

    `replace` begins anew instead of adding; `more_follow` says that nothing is to be certified before the next call.
    """

    adapter_id: str
    examples: tuple[Example, ...]
    settings: PredictSettings = field(default_factory=PredictSettings)
    truncate: bool = False
    replace: bool = False
    more_follow: bool = False


@dataclass(frozen=True)
class Grant:
    """What an adapter's calibration grants a request: threshold, certificate and quantile, as it was when it was asked."""

    manifest: AdapterManifest
    lineage: str
    conditions: Conditions
    calibration_id: str
    version: int
    threshold: Certificate | CoverageThreshold | None
    quantile: ConformalQuantile | None


@dataclass(frozen=True)
class OpenGate:
    """The gate of one request: thresholds to decide with, and what the calibration granted where it was needed."""

    thresholds: Thresholds
    grant: Grant | None = None


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
