"""How sure an answer is: one number that gates act on, and what kind of number it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abmll.uncertainty import Predictive

PREDICTIVE = "predictive"


@dataclass(frozen=True)
class Confidence:
    """`value` in [0, 1]; `kind` is "predictive" where it is the answer's share of the posterior predictive, as it stands."""

    value: float
    kind: str = PREDICTIVE


def confidence_of(predictive: Predictive) -> Confidence:
    """The confidence of `predictive`'s answer."""
    return Confidence(predictive.confidence)
