"""A client for the server: typed answers, typed errors, retries; frames, a gate for apps, and a scikit-learn classifier.

Imports neither torch nor the server. `abmll_client.sklearn` needs the extra `sklearn`; frames need the extra `pandas`.
"""

from abmll_client.client import AsyncClient, Client
from abmll_client.errors import (
    BusyError,
    ClientError,
    ConnectionFailedError,
    InvalidRequestError,
    NotFoundError,
    ServerError,
    StatusError,
    TookTooLongError,
    UnavailableError,
    UnreadableAnswerError,
)
from abmll_client.frames import support_from_frame
from abmll_client.gate import AsyncConfidenceGate, ConfidenceGate, GateStatistics, Outcome
from abmll_client.predictors import Scored, from_async_client, from_client, from_estimator

__all__ = [
    "AsyncClient",
    "AsyncConfidenceGate",
    "BusyError",
    "Client",
    "ClientError",
    "ConfidenceGate",
    "ConnectionFailedError",
    "GateStatistics",
    "InvalidRequestError",
    "NotFoundError",
    "Outcome",
    "Scored",
    "ServerError",
    "StatusError",
    "TookTooLongError",
    "UnavailableError",
    "UnreadableAnswerError",
    "from_async_client",
    "from_client",
    "from_estimator",
    "support_from_frame",
]
