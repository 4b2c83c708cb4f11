"""Requests to gates, and what comes of them."""

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
    """Gate that a predict request asks for.

    `thresholds` decide unless the request asks for a threshold from the adapter's calibration:
    `target_error` for one that is certified, where the certificate is wrong with probability at
    most `delta`, or `target_coverage` for one with that coverage. `alpha` asks for a prediction set
    that lacks the right option with at most that probability. `log` asks for ids to send labels to.
    """

    thresholds: Thresholds = field(default_factory=Thresholds)
    target_error: float | None = None
    delta: float = USUAL_DELTA
    target_coverage: float | None = None
    alpha: float | None = None
    log: bool = False

    @property
    def promises(self) -> bool:
        """Return whether the request asks for a guarantee of the calibration."""
        return any(wanted is not None for wanted in (self.target_error, self.target_coverage, self.alpha))

    @property
    def needs_calibration(self) -> bool:
        """Return whether the adapter has to have a calibration."""
        return self.log or self.promises


@dataclass(frozen=True)
class CalibrateRequest:
    """Labelled examples for an adapter's calibration, and how to predict them.

    `replace` starts a new calibration instead of adding to it. `more_follow` announces another
    request; until then nothing is certified.
    """

    adapter_id: str
    examples: tuple[Example, ...]
    settings: PredictSettings = field(default_factory=PredictSettings)
    truncate: bool = False
    replace: bool = False
    more_follow: bool = False


@dataclass(frozen=True)
class CalibratedGate:
    """What an adapter's calibration gives to the gate of one request.

    It is a copy: the calibration may change before the request is answered. `threshold` and
    `quantile` are None where the request does not ask for them.
    """

    manifest: AdapterManifest
    lineage: str
    conditions: Conditions
    calibration_id: str
    version: int
    threshold: Certificate | CoverageThreshold | None
    quantile: ConformalQuantile | None


@dataclass(frozen=True)
class ResolvedGate:
    """Gate of one request: the thresholds to decide with.

    `calibrated` is None where the request does not need the adapter's calibration.
    """

    thresholds: Thresholds
    calibrated: CalibratedGate | None = None


@dataclass(frozen=True)
class CalibrationView:
    """A calibration as it is now.

    While more examples are announced (`held`), `accuracy` is None, and there are no `certificates`
    and no `quantiles`. `certificates` are by target error.
    """

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
    """Result of sending labels.

    `stored` labels are new; `asked` of them had been asked for. `known` others were for predictions
    that had a label already, which stays. `contradicted` has the ids of those that a label here says
    the opposite of.
    """

    stored: int
    asked: int
    known: int
    contradicted: tuple[str, ...]
    view: CalibrationView
