"""Requests to gates, and what comes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from abmll.prediction.settings import PredictSettings, Thresholds
from abmll.text.tasks import Example

if TYPE_CHECKING:
    from abmll.assurance.certificates import Certificate, CoverageThreshold, NotYet
    from abmll.assurance.conformal import ConformalQuantile
    from model_store.adapters.manifest import AdapterManifest
    from service.gating.questions import AdapterQuestion, WantedQuestion
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


Label: TypeAlias = str | bool | int | None
"""A right answer: an option or a text; for a question also what its caller calls an option, and
None for an input that does not tell the answer."""


@dataclass(frozen=True)
class LabelledText:
    """An input with its label, and the options of its own, if any."""

    input: str
    label: Label
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelledCase:
    """An input with labels by the names of questions."""

    input: str
    labels: Mapping[str, Label]


@dataclass(frozen=True)
class CalibrateRequest:
    """Labelled examples for the calibration of an adapter's question, and how to predict them.

    `question` says which one, for an adapter whose examples have instructions. There may then be
    `cases` in place of examples: what they answer to other questions is left out. `replace` starts
    a new calibration instead of adding to it. `more_follow` announces another request; until then
    nothing is certified.
    """

    adapter_id: str
    examples: tuple[LabelledText, ...]
    settings: PredictSettings = field(default_factory=PredictSettings)
    truncate: bool = False
    replace: bool = False
    more_follow: bool = False
    question: WantedQuestion = None
    cases: tuple[LabelledCase, ...] = ()


@dataclass(frozen=True)
class Admitted:
    """Labelled examples that count, with the field of the request that each is in.

    `question` is the one that they answer, if the adapter has instructions.
    """

    examples: tuple[Example, ...]
    places: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    question: AdapterQuestion | None = None

    @property
    def digest(self) -> str:
        """Return the digest of the question; empty without one."""
        return self.question.digest if self.question is not None else ""


@dataclass(frozen=True)
class CalibratedGate:
    """What a calibration gives to the gate of one request.

    `question` is the digest of the question, empty where the adapter has no instructions. It is a
    copy: the calibration may change before the request is answered. `threshold` and `quantile` are
    None where the request does not ask for them.
    """

    manifest: AdapterManifest
    lineage: str
    conditions: Conditions
    calibration_id: str
    version: int
    threshold: Certificate | CoverageThreshold | None
    quantile: ConformalQuantile | None
    question: str = ""


@dataclass(frozen=True)
class ResolvedGate:
    """Gate of one query: the thresholds to decide with.

    `calibrated` is None where the request does not need the adapter's calibration.
    """

    thresholds: Thresholds
    calibrated: CalibratedGate | None = None


@dataclass(frozen=True)
class CalibrationView:
    """A calibration as it is now.

    While more examples are announced (`held`), `accuracy` is None, and there are no `certificates`
    and no `quantiles`. `certificates` are by target error. `question` is None where the adapter has
    no instructions.
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
    question: AdapterQuestion | None = None


@dataclass(frozen=True)
class FeedbackOutcome:
    """Result of sending labels.

    `stored` labels are new; `asked` of them had been asked for. `known` others were for predictions
    that had a label already, which stays. `contradicted` has the ids of those that a label here
    says the opposite of. `views` are the calibrations that the labels belong to, by first label.
    """

    stored: int
    asked: int
    known: int
    contradicted: tuple[str, ...]
    views: tuple[CalibrationView, ...]
