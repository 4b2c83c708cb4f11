"""What the server tells a worker (commands) and what it hears (events). All of it pickles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from service.executors.contract import EVERYBODY, Job, Lane, Losses, Partial, ServedModel

if TYPE_CHECKING:
    from abmll.adaptation.run import Adaptation
    from abmll.posterior.posteriors import TaskPosterior
    from abmll.prediction.run import Prediction


@dataclass(frozen=True)
class Submit:
    """Do `job`; drop it between units once `seconds_left` (None: any time) have passed since it was submitted.

    `adapter` is the adapter that a prediction names, where the worker does not hold it. With
    `progress`, tell what is known after each unit.
    """

    job_id: int
    job: Job
    adapter: TaskPosterior | None = None
    tenant: str = EVERYBODY
    seconds_left: float | None = None
    progress: bool = False


@dataclass(frozen=True)
class Cancel:
    """Drop the job; nothing more is told of it."""

    job_id: int


@dataclass(frozen=True)
class Stop:
    """End the loop."""


Command: TypeAlias = Submit | Cancel | Stop


@dataclass(frozen=True)
class Began:
    """The job is about to touch the model for the first time."""

    job_id: int


@dataclass(frozen=True)
class UnitRan:
    """One unit: how many runs and tokens it had, and how long it took."""

    lane: Lane
    runs: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Progress:
    """What is known of the job after a unit that did not end it; only of jobs that were submitted with `progress`."""

    job_id: int
    partial: Losses | Partial


@dataclass(frozen=True)
class Done:
    """The job's result, its times (see `contract.Timed`), and the adapters that the worker holds now."""

    job_id: int
    result: Adaptation | Sequence[Prediction]
    queue_seconds: float
    run_seconds: float
    held: tuple[str, ...]


@dataclass(frozen=True)
class Failed:
    """The job cannot be done."""

    job_id: int
    error: Exception


LoopEvent: TypeAlias = Began | UnitRan | Progress | Done | Failed


@dataclass(frozen=True)
class Ready:
    """The worker is loaded."""

    served: ServedModel


@dataclass(frozen=True)
class Beat:
    """The worker's heart beats; for how long its current unit has been running."""

    busy_seconds: float


@dataclass(frozen=True)
class Ended:
    """The worker is gone, or never came to be. The last event of a port."""

    error: BaseException | None


Event: TypeAlias = LoopEvent | Ready | Beat | Ended
