"""Known answers, by which a worker is checked when it starts and while it is idle.

The first worker gives them. The others, and those that are started again, have the same weights, so
they have to give the same: one that does not computes wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from abmll.prediction.settings import PredictSettings
from abmll.text.tasks import Query
from service.executors.contract import GLOBAL, PredictJob, ServedModel

if TYPE_CHECKING:
    from abmll.prediction.run import Prediction

TOLERANCE = 0.02
"""Most difference of a probability. Batches of other sizes differed by 1.2e-7 in bf16 on a CPU."""
_QUERIES = (
    Query("The parcel came two days late and the box was torn.", ("delivery", "billing", "praise")),
    Query("7 times 6 is 42.", ("true", "false")),
)


class SelfCheck:
    """Holds the known answers of one pool. `job` makes what a worker is asked."""

    def __init__(self) -> None:
        self._known: list[tuple[float, ...]] | None = None
        self._fastest = math.inf

    def job(self, served: ServedModel) -> PredictJob:
        """Return the job whose answers are known."""
        prompts = tuple(served.encoder.encode(query, truncate=True) for query in _QUERIES)
        return PredictJob(GLOBAL, prompts, PredictSettings(2))

    def wrong(self, answers: Sequence[Prediction]) -> str | None:
        """Return what is wrong with the answers of a worker; None where nothing is.

        The first ones with which nothing is become the known ones.
        """
        found = [tuple(answer.predictive.probabilities) for answer in answers]
        if not all(math.isfinite(value) for row in found for value in row):
            return "a probability is no finite number"
        if any(abs(sum(row) - 1) > TOLERANCE for row in found):
            return "the probabilities of an input do not sum to 1"
        if self._known is None:
            self._known = found
            return None
        difference = max(
            abs(ours - known)
            for row, other in zip(found, self._known, strict=True)
            for ours, known in zip(row, other, strict=True)
        )
        return (
            None if difference <= TOLERANCE else f"a probability differs by {difference:.3f} from a known one"
        )

    def times_slower(self, seconds: float) -> float:
        """Return how many times as long as the fastest check a check took."""
        self._fastest = min(self._fastest, max(seconds, 1e-4))
        return seconds / self._fastest
