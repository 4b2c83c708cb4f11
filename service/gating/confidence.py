"""How sure an answer is: one number that gates act on, and what kind of number it is (docs/confidence.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from service.errors import InvalidRequestError
from service.executors.contract import Samples, StopRule
from service.gating.thresholds import Thresholds

if TYPE_CHECKING:
    from abmll.calibrator import Calibrator, Shown
    from abmll.prediction.run import Prediction
    from abmll.prediction.uncertainty import Predictive
    from abmll.text.tasks import Query
    from model_store.adapters.store import StoredAdapter

PREDICTIVE, CALIBRATED = "predictive", "calibrated"
Asked: TypeAlias = Literal["predictive", "calibrated"] | None


class OwnTemperature:
    """Stands in for a calibrator where the adapter's temperature was chosen by its own held-out examples (see `held_out`).

    The answer's share of the predictive is then the probability that it is right, as it stands.
    """

    id = "held_out"
    fewest_samples = 0

    def covers(self, predictive: Predictive) -> bool:
        """Whether there are options to choose from."""
        return len(predictive.options) > 1

    def confidence(self, predictive: Predictive, support_size: int, held_out: Shown | None) -> float:
        """As `abmll.calibrator.Calibrator.confidence`."""
        return predictive.confidence


OWN_TEMPERATURE = OwnTemperature()
AnyCalibrator: TypeAlias = "Calibrator | OwnTemperature"


@dataclass(frozen=True)
class Confidence:
    """`value` in [0, 1]; `kind` is "predictive" where it is the answer's share of the posterior predictive, as it stands.

    "calibrated" is the probability that the answer is right, by the calibrator that ships with the posterior or by the
    adapter's own temperature; `source` then names the calibrator and what it was told of the adapter.
    """

    value: float
    kind: str = PREDICTIVE
    source: str = ""

    @property
    def function(self) -> str:
        """What was computed, exactly: two confidences may be compared where this is equal."""
        return f"{self.kind}:{self.source}" if self.source else self.kind


def confidence_of(
    predictive: Predictive,
    calibrator: AnyCalibrator | None = None,
    support_size: int = 0,
    held_out: Shown | None = None,
) -> Confidence:
    """The confidence of `predictive`'s answer: calibrated, if there is a `calibrator` and it covers the prediction.

    `support_size` is the adapter's, `held_out` how its own examples were answered when they were held out, if that is known.
    """
    if calibrator is None or not calibrator.covers(predictive):
        return Confidence(predictive.confidence)
    value = calibrator.confidence(predictive, support_size, held_out)
    told = f"{calibrator.id}+{held_out}" if held_out and calibrator is not OWN_TEMPERATURE else calibrator.id
    return Confidence(value, CALIBRATED, told)


@dataclass(frozen=True)
class Judge:
    """Gives the confidences of one request's predictions, finished or in work: by the calibrator of each query, or None.

    `held_out` is how the adapter's own `support_size` examples were answered when they were held out, if that is known.
    """

    calibrators: Sequence[AnyCalibrator | None]
    support_size: int
    held_out: Shown | None

    @classmethod
    def of(cls, adapter: StoredAdapter, calibrators: Sequence[AnyCalibrator | None]) -> Self:
        """For predictions with `adapter`."""
        held_out = adapter.diagnosis.shown if adapter.diagnosis else None
        return cls(calibrators, adapter.manifest.support.n, held_out)

    def confidence(self, index: int, prediction: Prediction) -> Confidence:
        """That of the prediction for query `index`."""
        return confidence_of(prediction.predictive, self.calibrators[index], self.support_size, self.held_out)

    def confidences(self, predictions: Sequence[Prediction]) -> list[Confidence]:
        """One for each query, in order."""
        return [self.confidence(index, prediction) for index, prediction in enumerate(predictions)]

    def used(self, confidences: Sequence[Confidence]) -> str | None:
        """The id of the calibrator behind any of `confidences`."""
        pairs = zip(self.calibrators, confidences, strict=True)
        return next((c.id for c, confidence in pairs if c and confidence.kind == CALIBRATED), None)


def calibrators_of(
    asked: Asked, calibrator: AnyCalibrator | None, samples: Samples, queries: Sequence[Query]
) -> list[AnyCalibrator | None]:
    """The calibrator to use for each query; None for free text, and where the raw confidence was asked for.

    Raises `InvalidRequestError` where a calibrated confidence is asked for and cannot be had.
    """
    if asked == PREDICTIVE:
        calibrator = None
    chosen = [calibrator if query.options else None for query in queries]
    if asked == CALIBRATED:
        reason = _why_not(calibrator, samples, chosen)
        if reason:
            raise InvalidRequestError(f"there is no calibrated confidence: {reason}", "confidence")
    return chosen


def _why_not(
    calibrator: AnyCalibrator | None, samples: Samples, chosen: Sequence[AnyCalibrator | None]
) -> str | None:
    if calibrator is None:
        return "the posterior that is served has no calibrator, and the adapter was made without calibration_folds"
    if None in chosen:
        return "free text has none"
    from abmll.prediction.stopping import FEWEST_SAMPLES  # noqa: PLC0415 - with torch, which the command line can do without

    if (FEWEST_SAMPLES if samples == "auto" else samples) < calibrator.fewest_samples:
        return f"it needs at least {calibrator.fewest_samples} samples"
    return None


def stop_rule(gate: Thresholds, calibrators: Sequence[AnyCalibrator | None]) -> StopRule:
    """What decides that `samples="auto"` has drawn enough, for a gate on confidences by these calibrators.

    The rule watches the predictive. A threshold on what a calibrator makes of it means nothing there, and no other condition may
    end the sampling before that one is settled; what is left is to sample until the predictive is known to the tolerance.
    """
    if gate.min_confidence is not None and any(c and c is not OWN_TEMPERATURE for c in calibrators):
        return StopRule()
    # What of a gate can end sampling are its conditions on options.
    return StopRule(gate.min_confidence, gate.min_margin, gate.max_mutual_information)
