"""Whatever answers texts, as one kind of function for the gates: a client with an adapter, or a scikit-learn classifier."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias, Unpack

from service import schemas

if TYPE_CHECKING:
    from abmll_client.calls import PredictFields
    from abmll_client.client import AsyncClient, Client


@dataclass(frozen=True)
class Scored:
    """A model's answer and how sure it is. `mutual_information` in nats, None where the model has none.

    `abstain_reason` is the server's where it abstained, and None where it answered.
    """

    answer: Any
    confidence: float
    margin: float
    mutual_information: float | None = None
    abstain_reason: str | None = None

    @classmethod
    def of(cls, prediction: schemas.Prediction) -> Self:
        """As the server answered, with its decision."""
        reason = prediction.abstain_reason or "abstained"
        return cls(
            prediction.answer,
            prediction.confidence,
            prediction.margin,
            prediction.uncertainty.mutual_information,
            reason if prediction.decision == "abstain" else None,
        )


Predictor: TypeAlias = Callable[[Sequence[str]], Sequence[Scored]]
AsyncPredictor: TypeAlias = Callable[[Sequence[str]], Awaitable[Sequence[Scored]]]


def from_client(client: Client, **fields: Unpack[PredictFields]) -> Predictor:
    """The server's answers; `fields` as for `Client.predict`, such as `adapter_id` and the `gate` by which it decides."""

    def predict(texts: Sequence[str]) -> list[Scored]:
        return [Scored.of(prediction) for prediction in client.predict_all(texts, **fields)]

    return predict


def from_async_client(client: AsyncClient, **fields: Unpack[PredictFields]) -> AsyncPredictor:
    """As `from_client`, for an `AsyncConfidenceGate`."""

    async def predict(texts: Sequence[str]) -> list[Scored]:
        return [Scored.of(prediction) for prediction in await client.predict_all(texts, **fields)]

    return predict


def from_estimator(estimator: Any) -> Predictor:
    """A fitted classifier's most probable class, with its probability; any that has `predict_proba` and `classes_`."""

    def predict(texts: Sequence[str]) -> list[Scored]:
        return [_most_probable(row, estimator.classes_) for row in estimator.predict_proba(texts).tolist()]

    return predict


def _most_probable(probabilities: Sequence[float], classes: Sequence[Any]) -> Scored:
    *_, second, first = sorted([0.0, *probabilities])
    return Scored(classes[probabilities.index(first)], first, first - second)
