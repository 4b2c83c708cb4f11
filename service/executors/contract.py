"""What the engine asks of whoever does the model work.

A `Worker` owns a model and is called from one thread. It turns jobs into runs, and works on several runs at once, one *unit* at
a time: one gradient step of an adaptation, or one chunk of samples of a prediction. An `Executor` carries jobs to workers without
blocking the event loop. A job whose awaiter is cancelled stops at the next boundary between units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from abmll.adaptation.run import Adaptation
    from abmll.adaptation.settings import AdaptSettings
    from abmll.posterior.posteriors import TaskPosterior
    from abmll.prediction.run import Prediction
    from abmll.prediction.settings import PredictSettings
    from abmll.text.prompting import EncodedPrompt, LabelledPrompt
    from abmll.text.tasks import Example, Query
    from model_store.pretrained.identity import BaseIdentity

T = TypeVar("T")
Lane: TypeAlias = Literal["adapt", "predict"]
LANES: tuple[Lane, ...] = ("adapt", "predict")
EVERYBODY = "default"  # the tenant of whoever is not told apart
Losses: TypeAlias = Sequence[float]
"""Of an adaptation so far: the mean loss of each step, in nats an example."""
Partial: TypeAlias = "Sequence[Prediction | None]"
"""Of a prediction so far: one for each query, in order; None where no sample is drawn yet."""


class Encoder(Protocol):
    """The part of `abmll.text.prompting.PromptEncoder` that admission needs; threads share it."""

    @property
    def max_tokens(self) -> int:
        """The context."""

    def encode(self, query: Query, *, truncate: bool = False, max_new_tokens: int = 0) -> EncodedPrompt:
        """Raises `abmll.errors.PromptTooLongError` or `OptionsError`."""

    def encode_example(self, example: Example, *, truncate: bool = False) -> EncodedPrompt:
        """As `encode`."""


@dataclass(frozen=True)
class ServedModel:
    """What a worker has loaded. It pickles.

    `base`, `posterior_digest` and `template` decide results: they go into adapter ids.
    """

    base: BaseIdentity
    posterior_id: str
    posterior_digest: str
    template: Mapping[str, str]
    defaults: AdaptSettings
    encoder: Encoder

    @property
    def deciding(self) -> tuple[object, ...]:
        """What must be equal for two workers to give equal results."""
        return self.base, self.posterior_digest, dict(self.template)


@dataclass(frozen=True)
class AdaptJob:
    """Fit the task posterior of `adapter_id` to encoded examples. Equal jobs give equal posteriors."""

    adapter_id: str
    examples: tuple[LabelledPrompt, ...]
    settings: AdaptSettings
    seed: int


@dataclass(frozen=True)
class PredictJob:
    """Answer encoded prompts with the adapter that the worker holds under `adapter_id`.

    Equal jobs give equal predictions. A job carries no weights: whoever submits it hands them to a
    worker that does not hold the adapter (`messages.Submit`).
    """

    adapter_id: str
    prompts: tuple[EncodedPrompt, ...]
    settings: PredictSettings


Job: TypeAlias = AdaptJob | PredictJob


def lane_of(job: Job) -> Lane:
    """The lane that a job's units run in."""
    return "adapt" if isinstance(job, AdaptJob) else "predict"


class AdapterNotHeldError(Exception):
    """A `PredictJob` came alone to a worker that does not hold `adapter_id`."""

    def __init__(self, adapter_id: str) -> None:
        super().__init__(adapter_id)
        self.adapter_id = adapter_id


class WorkerFatalError(Exception):
    """The worker cannot go on, whatever the job: its device has failed. Ends this worker, and no other."""


class Run(Protocol):
    """One job in work on a worker; rests between units."""

    @property
    def lane(self) -> Lane:
        """Which runs it may be advanced with."""

    @property
    def done(self) -> bool:
        """Whether `result` is there."""

    def next_tokens(self) -> int:
        """Upper bound on the tokens of the next unit; at least 1."""

    def result(self) -> Adaptation | Sequence[Prediction]:
        """The adaptation, or one prediction a query, in order. Only once `done`."""

    def partial(self) -> Losses | Partial:
        """What is known after the units so far. Asked between units, of jobs whose progress somebody follows."""


class Worker(Protocol):
    """Owns the model; not thread-safe."""

    @property
    def served(self) -> ServedModel:
        """What is loaded."""

    @property
    def tokens_per_unit(self) -> int:
        """Runs of one lane are advanced together up to this many tokens; one run alone may exceed it."""

    def begin(self, job: Job, adapter: TaskPosterior | None = None) -> Run:
        """A run that has not advanced yet; `adapter` comes with a prediction whose adapter is not held yet.

        Raises `abmll.errors.AbmllError` for what the method refuses, and `AdapterNotHeldError`.
        """

    def advance(self, runs: Sequence[Run]) -> None:
        """One unit for each of `runs`, all of one lane and none done.

        Where this raises, no run has advanced: several are then tried again one by one. Raises `WorkerFatalError` where the
        worker cannot go on.
        """

    def finish(self, run: Run) -> None:
        """Let go of what the run holds. Called once for every run that has begun, done or not."""

    def held(self) -> Sequence[str]:
        """Ids of the adapters that are held."""


@dataclass(frozen=True)
class Timed(Generic[T]):
    """A result, how long its job waited before its first unit, and its share of the units it was in."""

    value: T
    queue_seconds: float
    run_seconds: float


WorkerState: TypeAlias = Literal["starting", "up", "down"]


@dataclass(frozen=True)
class WorkerStatus:
    """One worker as operators see it. `jobs` wait or run on it; `restarts` since the start of the server."""

    name: str
    state: WorkerState
    restarts: int
    jobs: int


class Executor(Protocol):
    """Carries jobs to workers. `deadline` is in seconds from the call; beyond it `service.errors.DeadlineExceededError`.

    `on_progress` is called on the event loop after units that do not end the job, with all that is known by then. A job that
    is done anew, because its worker was lost, begins from nothing again.
    """

    async def start(self) -> ServedModel:
        """Return when a first worker is up; raises what loading raised if none can be loaded."""

    async def adapt(
        self,
        job: AdaptJob,
        *,
        tenant: str = EVERYBODY,
        deadline: float | None = None,
        on_progress: Callable[[Losses], None] | None = None,
    ) -> Timed[Adaptation]:
        """The adaptation. Raises what the worker raised, or `service.errors.WorkerLostError`."""

    async def predict(
        self,
        job: PredictJob,
        adapter: TaskPosterior,
        *,
        tenant: str = EVERYBODY,
        deadline: float | None = None,
        on_progress: Callable[[Partial], None] | None = None,
    ) -> Timed[Sequence[Prediction]]:
        """The predictions of `job` with its `adapter`, which goes to a worker that lacks it. Raises as `adapt`."""

    def workers(self) -> Sequence[WorkerStatus]:
        """Every worker, in a fixed order."""

    async def close(self) -> None:
        """Drop all jobs and let go of the workers."""
