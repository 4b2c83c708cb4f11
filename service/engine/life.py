"""From the start of a server to its end: whether it takes requests, and the model that it loaded."""

from __future__ import annotations

from enum import StrEnum

from service.errors import DrainingError, LoadFailedError, StartingError
from service.executors.contract import Executor, ServedModel
from service.metrics import Metrics


class State(StrEnum):
    """State of the engine: from starting to ready or failed, from starting or ready to draining."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"


class Life:
    """Owns the state of a server and its loaded model; the engines of all principals share it."""

    def __init__(self, metrics: Metrics) -> None:
        """Begin in the state `STARTING`."""
        self.state, self._metrics = State.STARTING, metrics
        self._served: ServedModel | None = None

    @property
    def served(self) -> ServedModel:
        """Return the loaded model, also while draining.

        Raises `StartingError` before it is loaded, `LoadFailedError` if loading failed.
        """
        if self.state is State.FAILED:
            raise LoadFailedError("the model could not be loaded; the server's log says why")
        if self._served is None:
            raise StartingError("the model is loading")
        return self._served

    async def start(self, executor: Executor) -> bool:
        """Load the model; return whether the server is ready then. Raises what loading raises."""
        try:
            self._served = await executor.start()
        except Exception:
            self.state = State.FAILED
            raise
        if self.state is State.STARTING:
            self.state = State.READY
            self._metrics.ready.set(1)
        return self.state is State.READY

    def check_ready(self) -> ServedModel:
        """Return the loaded model. Raises `StartingError`, `LoadFailedError` or `DrainingError`."""
        if self.state is State.DRAINING:
            raise DrainingError("the server is shutting down")
        return self.served

    def drain(self) -> None:
        """Accept no more requests."""
        if self.state is not State.FAILED:
            self.state = State.DRAINING
        self._metrics.ready.set(0)
