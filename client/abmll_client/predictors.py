"""Whatever answers texts, as one kind of function for the gates.

That is a client with an adapter, or a scikit-learn classifier.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias, Unpack

from abmll_client.models import DecidedInput, Prediction, QuestionAnswer

if TYPE_CHECKING:
    from abmll_client.arguments import DecideFields, PredictFields
    from abmll_client.async_client import AsyncClient
    from abmll_client.client import Client
    from abmll_client.questions import QuestionLike


@dataclass(frozen=True)
class ModelAnswer:
    """A model's answer to one text, and how sure the model is of it.

    `mutual_information` is in nats, and None where the model has none. `abstain_reason` is the
    server's where it abstained, and None where it answered.
    """

    answer: Any
    confidence: float
    margin: float
    mutual_information: float | None = None
    abstain_reason: str | None = None

    @classmethod
    def of(cls, prediction: Prediction) -> Self:
        """Take over the server's answer, with its decision."""
        reason = prediction.abstain_reason or "abstained"
        return cls(
            prediction.answer,
            prediction.confidence,
            prediction.margin,
            prediction.uncertainty.mutual_information,
            reason if prediction.decision == "abstain" else None,
        )

    @classmethod
    def of_question(cls, found: QuestionAnswer) -> Self:
        """Take over the server's answer to a question, with its decision."""
        reason = (found.reason or "abstained") if found.decision == "abstain" else None
        return cls(found.answer, found.confidence, found.margin, found.mutual_information, reason)


Predictor: TypeAlias = Callable[[Sequence[str]], Sequence[ModelAnswer]]
AsyncPredictor: TypeAlias = Callable[[Sequence[str]], Awaitable[Sequence[ModelAnswer]]]
ByQuestion: TypeAlias = Sequence[Mapping[str, ModelAnswer]]
"""For each text, the answers by the name of the question."""


def from_client(client: Client, **fields: Unpack[PredictFields]) -> Predictor:
    """Make a predictor of a server's answers.

    `fields` are those of `Client.predict`, such as `adapter_id` and the server's own `gate`.
    """

    def predict(texts: Sequence[str]) -> list[ModelAnswer]:
        return [ModelAnswer.of(prediction) for prediction in client.predict_all(texts, **fields)]

    return predict


def from_async_client(client: AsyncClient, **fields: Unpack[PredictFields]) -> AsyncPredictor:
    """As `from_client`, for an `AsyncConfidenceGate`."""

    async def predict(texts: Sequence[str]) -> list[ModelAnswer]:
        return [ModelAnswer.of(prediction) for prediction in await client.predict_all(texts, **fields)]

    return predict


def questions_from_client(
    client: Client, questions: Iterable[QuestionLike] | None = None, **fields: Unpack[DecideFields]
) -> Callable[[Sequence[str]], ByQuestion]:
    """Make a function of a server's answers to questions, for `QuestionGates`.

    `fields` are those of `Client.decide`, such as `model` and the server's own `gate` and `gates`.
    """
    asked = None if questions is None else list(questions)

    def predict(texts: Sequence[str]) -> ByQuestion:
        return _by_question(client.decide_all(texts, asked, **fields))

    return predict


def questions_from_async_client(
    client: AsyncClient, questions: Iterable[QuestionLike] | None = None, **fields: Unpack[DecideFields]
) -> Callable[[Sequence[str]], Awaitable[ByQuestion]]:
    """As `questions_from_client`, for `AsyncQuestionGates`."""
    asked = None if questions is None else list(questions)

    async def predict(texts: Sequence[str]) -> ByQuestion:
        return _by_question(await client.decide_all(texts, asked, **fields))

    return predict


def _by_question(results: Sequence[DecidedInput]) -> ByQuestion:
    return [
        {name: ModelAnswer.of_question(answer) for name, answer in row.answers.items()} for row in results
    ]


def from_estimator(estimator: Any) -> Predictor:
    """Make a predictor of a fitted classifier's most probable class, with its probability.

    The classifier is any that has `predict_proba` and `classes_`.
    """

    def predict(texts: Sequence[str]) -> list[ModelAnswer]:
        return [_most_probable(row, estimator.classes_) for row in estimator.predict_proba(texts).tolist()]

    return predict


def _most_probable(probabilities: Sequence[float], classes: Sequence[Any]) -> ModelAnswer:
    *_, second, first = sorted([0.0, *probabilities])
    return ModelAnswer(classes[probabilities.index(first)], first, first - second)
