"""What the pool knows of a worker's transport."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from service.executors.messages import Command, Event


class Port(Protocol):
    """Connection to one worker, until that ends. A restarted worker has a new port."""

    def start(self, emit: Callable[[Event], None]) -> None:
        """Load the worker, and call `emit` with its events, from any thread."""

    def send(self, command: Command) -> None:
        """Send a command, without waiting."""

    def kill(self) -> None:
        """End the worker in the middle of a unit; the event `Ended` follows."""

    def close(self) -> None:
        """Let the worker end after its unit, and wait a few seconds for it. Blocks."""


class EarlyPort(Port, Protocol):
    """Port whose worker can load before anything is to be done with its events."""

    def begin(self) -> None:
        """Let the worker load, without the threads that talk with it."""


P = TypeVar("P", bound=EarlyPort)


def begun_early(make: Callable[[int], P], count: int) -> Callable[[int], P]:
    """Return `make` for the pool; the workers of the first `count` ports begin to load now."""
    begun = {index: make(index) for index in range(count)}
    for port in begun.values():
        port.begin()
    return lambda index: begun.pop(index, None) or make(index)
