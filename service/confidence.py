"""How sure an answer is: one number that gates act on, and what kind of number it is (docs/confidence.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from service.errors import InvalidRequestError
from service.executors.contract import Samples, StopRule
from service.gate import Thresholds

if TYPE_CHECKING:
    from abmll.calibrator import Calibrator, Shown
    from abmll.tasks import Query
    from abmll.uncertainty import Predictive

PREDICTIVE, CALIBRATED = "predictive", "calibrated"
Asked: TypeAlias = Literal["predictive", "calibrated"] | None


@dataclass(frozen=True)
class Confidence:
    """`value` in [0, 1]; `kind` is "predictive" where it is the answer's share of the posterior predictive, as it stands.

    "calibrated" is the probability that the answer is right, by the calibrator that ships with the posterior.
    """

    value: float
    kind: str = PREDICTIVE


def confidence_of(
    predictive: Predictive,
    calibrator: Calibrator | None = None,
    support_size: int = 0,
    held_out: Shown | None = None,
) -> Confidence:
    """The confidence of `predictive`'s answer: calibrated, if there is a `calibrator` and it covers the prediction.

    `support_size` is the adapter's, `held_out` how its own examples were answered when they were held out, if that is known.
    """
    if calibrator is None or not calibrator.covers(predictive):
        return Confidence(predictive.confidence)
    return Confidence(calibrator.confidence(predictive, support_size, held_out), CALIBRATED)


def calibrators_of(
    asked: Asked, calibrator: Calibrator | None, samples: Samples, queries: Sequence[Query]
) -> list[Calibrator | None]:
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
    calibrator: Calibrator | None, samples: Samples, chosen: Sequence[Calibrator | None]
) -> str | None:
    if calibrator is None:
        return "the posterior that is served has no calibrator"
    if None in chosen:
        return "free text has none"
    from abmll.stopping import FEWEST_SAMPLES  # noqa: PLC0415 - with torch, which the command line can do without

    if (FEWEST_SAMPLES if samples == "auto" else samples) < calibrator.fewest_samples:
        return f"it needs at least {calibrator.fewest_samples} samples"
    return None


def stop_rule(gate: Thresholds, *, calibrated: bool) -> StopRule:
    """What decides that `samples="auto"` has drawn enough, for a gate on a confidence that is calibrated or not.

    The rule watches the raw predictive. A threshold on a calibrated confidence means nothing there, and no other condition may
    end the sampling before that one is settled; what is left is to sample until the predictive is known to the tolerance.
    """
    if calibrated and gate.min_confidence is not None:
        return StopRule()
    return StopRule(**asdict(gate))
