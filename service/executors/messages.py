"""Messages between the server and a worker: commands to it, events from it. All of them pickle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from service.executors.contract import DEFAULT_TENANT, Job, Lane, Losses, Partial, ServedModel

if TYPE_CHECKING:
    from abmll.adaptation.run import Adaptation
    from abmll.posterior.posteriors import TaskPosterior
    from abmll.prediction.run import Prediction


@dataclass(frozen=True)
class Submit:
    """Do `job`.

    The job is dropped after `seconds_left`, between units; None sets no limit. `adapter` is the
    adapter of a prediction, where the worker does not hold it. `progress` asks for `Advanced`
    events.
    """

    job_id: int
    job: Job
    adapter: TaskPosterior | None = None
    tenant: str = DEFAULT_TENANT
    seconds_left: float | None = None
    progress: bool = False


@dataclass(frozen=True)
class Cancel:
    """Drop the job. No more events of it follow."""

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
    """A unit of several runs was done, with so many tokens in all."""

    lane: Lane
    runs: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Advanced:
    """What is known of the job after a unit that did not end it.

    Sent only for jobs that were submitted with `progress`.
    """

    job_id: int
    partial: Losses | Partial


@dataclass(frozen=True)
class Done:
    """Result of the job, its times (`contract.Timed`), and the adapters that the worker holds."""

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


LoopEvent: TypeAlias = Began | UnitRan | Advanced | Done | Failed


@dataclass(frozen=True)
class Ready:
    """The worker is loaded."""

    served: ServedModel


@dataclass(frozen=True)
class Beat:
    """The worker process is alive.

    `busy_seconds` is how long its current unit has been running. `unit_size` is the size of that
    unit in units of the usual size. `gpu_bytes` is None where it uses no GPU.
    """

    busy_seconds: float
    unit_size: float = 1.0
    memory_bytes: int | None = None
    gpu_bytes: int | None = None


@dataclass(frozen=True)
class Ended:
    """The worker has ended, or could not be loaded. The last event of a port."""

    error: BaseException | None


Event: TypeAlias = LoopEvent | Ready | Beat | Ended
