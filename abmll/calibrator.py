"""Calibrated confidence: the probability that an answer is right, from what the samples say about it (docs/confidence.md).

A calibrator is a logistic model on features of the averaged predictive and of the adapter, fitted across meta-validation
tasks (`evaluation/calibration.py`). Evaluating it takes no library.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from abmll.errors import AbmllError

if TYPE_CHECKING:
    from abmll.prediction.uncertainty import Predictive

FORMAT_VERSION = 1
FEATURES = (
    "top_logit",
    "margin",
    "mutual_information",
    "log_options",
    "log_support",
    "held_out_logit",
    "held_out_unknown",
)
"""Names of the features, in their order; mutual information is divided by the logarithm of the number of options."""
# A probability closer to 0 or 1 than this counts as this in a logit.
CLIP = 1e-6


@dataclass(frozen=True)
class Shown:
    """How many of an adapter's own examples were answered right when they were held out, of how many."""

    correct: int
    n: int


def features(predictive: Predictive, support_size: int, held_out: Shown | None) -> tuple[float, ...]:
    """The values of `FEATURES` for a prediction over at least two options. `held_out` None: not known."""
    top = min(max(predictive.confidence, CLIP), 1 - CLIP)
    log_options = math.log(max(2, len(predictive.options)))
    # The odds of a right answer with half an example added to either side: finite even where all or none are right.
    shown = math.log((held_out.correct + 0.5) / (held_out.n - held_out.correct + 0.5)) if held_out else 0.0
    return (
        math.log(top / (1 - top)),
        predictive.margin,
        predictive.uncertainty.mutual_information / log_options,
        log_options,
        math.log(max(1, support_size)),
        shown,
        float(held_out is None),
    )


@dataclass(frozen=True)
class Calibrator:
    """P(answer is right) = sigmoid(`intercept` + sum of `coefficients` x features).

    `coefficients` are by name, those of `FEATURES`. It holds for predictions of the posterior of `posterior_digest` that are
    averaged over at least `fewest_samples` samples. `fitted` says on what, as plain values.
    """

    posterior_digest: str
    intercept: float
    coefficients: Mapping[str, float]
    fewest_samples: int
    fitted: Mapping[str, Any]

    def __post_init__(self) -> None:
        if set(self.coefficients) != set(FEATURES):
            raise AbmllError(f"a calibrator needs the coefficients {', '.join(FEATURES)}")
        if not all(map(math.isfinite, (self.intercept, *self.coefficients.values()))):
            raise AbmllError("a calibrator's coefficients are finite numbers")

    @property
    def id(self) -> str:
        """`cal_` and the first 48 bits of the digest."""
        return f"cal_{self.digest[:12]}"

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of all that it is."""
        text = json.dumps(self._values(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def covers(self, predictive: Predictive) -> bool:
        """Whether it may speak about `predictive`: options to choose from, and enough samples."""
        return len(predictive.options) > 1 and predictive.samples >= self.fewest_samples

    def confidence(self, predictive: Predictive, support_size: int, held_out: Shown | None) -> float:
        """The calibrated probability that the answer is right, for a prediction that it `covers`."""
        return self.evaluate(features(predictive, support_size, held_out))

    def evaluate(self, row: tuple[float, ...]) -> float:
        """The probability for the values of `FEATURES`."""
        score = self.intercept + math.fsum(
            self.coefficients[name] * value for name, value in zip(FEATURES, row, strict=True)
        )
        # Of the two equal forms the one that cannot overflow.
        if score >= 0:
            return 1 / (1 + math.exp(-score))
        return math.exp(score) / (1 + math.exp(score))

    def to_json(self) -> dict[str, Any]:
        """Plain values for `calibrator.json`."""
        return {**self._values(), "digest": self.digest}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`. Raises `AbmllError` for another version or values that are not those of the digest."""
        if values.get("format_version") != FORMAT_VERSION:
            found = values.get("format_version")
            raise AbmllError(f"calibrator format {found!r} is not the one read here, {FORMAT_VERSION}")
        try:
            made = cls(
                posterior_digest=values["posterior_digest"],
                intercept=float(values["intercept"]),
                coefficients={name: float(value) for name, value in values["coefficients"].items()},
                fewest_samples=int(values["fewest_samples"]),
                fitted=dict(values["fitted"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AbmllError(f"the calibrator cannot be read: {error!r}") from error
        if made.digest != values.get("digest"):
            raise AbmllError("the calibrator does not match its digest")
        return made

    def _values(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "posterior_digest": self.posterior_digest,
            "intercept": self.intercept,
            "coefficients": dict(self.coefficients),
            "fewest_samples": self.fewest_samples,
            "fitted": dict(self.fitted),
        }
