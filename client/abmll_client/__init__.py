"""A client of the server: typed answers, typed errors, retries, streams, frames, a gate for apps.

It imports neither torch nor the server. `abmll_client.sklearn` has a scikit-learn classifier and
needs the extra `sklearn`; `abmll_client.plot` has pictures and needs the extra `plot`; frames need
the extra `pandas`.
"""

from abmll_client.async_client import AsyncClient
from abmll_client.client import Client
from abmll_client.errors import (
    AccessError,
    BusyError,
    ClientError,
    ConnectionFailedError,
    InvalidRequestError,
    NotAdaptedError,
    NotFoundError,
    ServerError,
    StatusError,
    TookTooLongError,
    UnavailableError,
    UnreadableAnswerError,
)
from abmll_client.events import AdapterEvent, DoneEvent, PredictionEvent, RefinementEvent, StepEvent
from abmll_client.frames import cases_from_frame, support_from_frame
from abmll_client.gate import AsyncConfidenceGate, ConfidenceGate
from abmll_client.gate_results import GateResult, GateStatistics
from abmll_client.predictors import (
    ModelAnswer,
    from_async_client,
    from_client,
    from_estimator,
    questions_from_async_client,
    questions_from_client,
)
from abmll_client.question_gates import AsyncQuestionGates, QuestionGates
from abmll_client.questions import Choice, Predicate, Score
from abmll_client.streams import AsyncEventStream, EventStream

__all__ = [
    "AccessError",
    "AdapterEvent",
    "AsyncClient",
    "AsyncConfidenceGate",
    "AsyncEventStream",
    "AsyncQuestionGates",
    "BusyError",
    "Choice",
    "Client",
    "ClientError",
    "ConfidenceGate",
    "ConnectionFailedError",
    "DoneEvent",
    "EventStream",
    "GateResult",
    "GateStatistics",
    "InvalidRequestError",
    "ModelAnswer",
    "NotAdaptedError",
    "NotFoundError",
    "Predicate",
    "PredictionEvent",
    "QuestionGates",
    "RefinementEvent",
    "Score",
    "ServerError",
    "StatusError",
    "StepEvent",
    "TookTooLongError",
    "UnavailableError",
    "UnreadableAnswerError",
    "cases_from_frame",
    "from_async_client",
    "from_client",
    "from_estimator",
    "questions_from_async_client",
    "questions_from_client",
    "support_from_frame",
]
