"""The contract between the engine and what does the model work.

A `Worker` owns a model and is called from one thread. It turns jobs into runs, and works on several
runs at once, one *unit* at a time: one gradient step of an adaptation, or one chunk of samples of a
prediction, or a part of one that is long. An `Executor` sends jobs to workers without blocking the
event loop. A job whose caller is cancelled stops after the current unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from abmll.adaptation.run import Adaptation
    from abmll.adaptation.settings import AdaptSettings
    from abmll.posterior.posteriors import TaskPosterior
    from abmll.prediction.run import Prediction
    from abmll.prediction.settings import PredictSettings
    from abmll.text.prompting import EncodedPrompt, LabelledPrompt
    from abmll.text.tasks import Example, Query
    from abmll.work import Speed, WorkCounter
    from model_store.pretrained.identity import BaseIdentity

T = TypeVar("T")
Lane: TypeAlias = Literal["adapt", "predict"]
LANES: tuple[Lane, ...] = ("adapt", "predict")
GLOBAL = "global"  # what a job names instead of an adapter, where the global posterior answers
DEFAULT_TENANT = "default"  # the tenant of requests that name none
_BACKGROUND = "\0background "  # no tenant that a header names begins like this
Losses: TypeAlias = Sequence[float]
"""Losses of an adaptation so far: the mean loss of each step, in nats an example."""
Partial: TypeAlias = "Sequence[Prediction | None]"
"""Predictions so far, one for each query, in order; None where no sample is drawn yet."""


def in_background(tenant: str) -> str:
    """Return what a tenant is called whose jobs run only where no others are ready."""
    return _BACKGROUND + tenant


def is_background(tenant: str) -> bool:
    """Return whether jobs of this tenant run only where no others are ready."""
    return tenant.startswith(_BACKGROUND)


class Encoder(Protocol):
    """The part of `abmll.text.prompting.PromptEncoder` that admission needs; threads share it."""

    @property
    def max_tokens(self) -> int:
        """Return the number of tokens in the context."""

    def encode(self, query: Query, *, truncate: bool = False, max_new_tokens: int = 0) -> EncodedPrompt:
        """Return the prompt of a query.

        Raises `abmll.errors.PromptTooLongError` and `OptionsError`.
        """

    def encode_example(self, example: Example, *, truncate: bool = False) -> EncodedPrompt:
        """Return the prompt of a labelled example. Raises as `encode`."""


@dataclass(frozen=True)
class Prices:
    """What a request's price is made of: how the worker cuts work, and how long its parts take."""

    counter: WorkCounter
    speed: Speed


@dataclass(frozen=True)
class ServedModel:
    """What a worker has loaded. Instances pickle.

    `base`, `posterior_digest` and `template` determine results, so they are part of adapter ids.
    `prices` were measured by the worker and may differ between equal models; None where they are
    not known. `others` are what answers for adapters of other posteriors of the same base; they
    have none themselves.
    """

    base: BaseIdentity
    posterior_id: str
    posterior_digest: str
    template: Mapping[str, str]
    defaults: AdaptSettings
    encoder: Encoder
    prices: Prices | None = field(default=None, compare=False)
    others: tuple[ServedModel, ...] = ()

    @property
    def identity(self) -> tuple[object, ...]:
        """Return what must be equal for two workers to give equal results."""
        others = tuple(other.identity for other in self.others)
        return self.base, self.posterior_digest, dict(self.template), others

    @property
    def by_posterior(self) -> tuple[ServedModel, ...]:
        """Return what is served with each posterior, the default first."""
        return self, *self.others


@dataclass(frozen=True)
class AdaptJob:
    """Examples in tokens to fit the task posterior of `adapter_id` to, from a global posterior.

    `posterior` is the digest of that one; empty stands for the default. Equal jobs give equal
    posteriors. One that no step moved comes back without values, which are those of the global
    posterior, unless the job `needs_values`.
    """

    adapter_id: str
    examples: tuple[LabelledPrompt, ...]
    settings: AdaptSettings
    seed: int
    posterior: str = ""
    needs_values: bool = False


@dataclass(frozen=True)
class PredictJob:
    """Prompts to answer with the adapter `adapter_id`, or with the global posterior (`GLOBAL`).

    `posterior` is the digest of the global posterior that the adapter was made from; empty stands
    for the default. Equal jobs give equal predictions. A job has no weights: they are sent with it
    to a worker that does not hold the adapter (`messages.Submit`).
    """

    adapter_id: str
    prompts: tuple[EncodedPrompt, ...]
    settings: PredictSettings
    posterior: str = ""


Job: TypeAlias = AdaptJob | PredictJob


def lane_of(job: Job) -> Lane:
    """Return the lane of a job."""
    return "adapt" if isinstance(job, AdaptJob) else "predict"


class AdapterNotHeldError(Exception):
    """A `PredictJob` came without its adapter to a worker that does not hold `adapter_id`."""

    def __init__(self, adapter_id: str) -> None:
        super().__init__(adapter_id)
        self.adapter_id = adapter_id


class WorkerFatalError(Exception):
    """The worker's device has failed, so it can do no job. Ends this worker only."""


class Run(Protocol):
    """A job that a worker has begun. Nothing of it runs between units."""

    @property
    def lane(self) -> Lane:
        """Return the lane; runs of one lane may be advanced together."""

    @property
    def done(self) -> bool:
        """Return whether the result is there."""

    def next_tokens(self) -> int:
        """Return an upper bound on the tokens of the next unit, at least 1."""

    def result(self) -> Adaptation | Sequence[Prediction]:
        """Return the adaptation, or one prediction a query, in order. Needs `done`."""

    def partial(self) -> Losses | Partial:
        """Return what is known after the units so far. Called between units, for streams."""


class Worker(Protocol):
    """Owns a model. Not thread-safe."""

    @property
    def served(self) -> ServedModel:
        """Return what is loaded."""

    @property
    def tokens_per_unit(self) -> int:
        """Return the most tokens of a unit of several runs; one run alone may have more."""

    @property
    def adaptations_at_once(self) -> int:
        """Return the most adaptations that may be begun and not finished, at least 1."""

    def begin(self, job: Job, adapter: TaskPosterior | None = None) -> Run:
        """Return the run of a job, before its first unit.

        `adapter` is the adapter of a prediction, where the worker does not hold it. Raises
        `abmll.errors.AbmllError` for what the method refuses, and `AdapterNotHeldError`.
        """

    def advance(self, runs: Sequence[Run]) -> None:
        """Run one unit of each of `runs`, which are of one lane and not done.

        Raises `WorkerFatalError` where the worker can do no job. After any other error, no run has
        advanced; the caller tries several runs again one by one.
        """

    def finish(self, run: Run) -> None:
        """Release what the run holds. Called once for each run, done or not."""

    def held(self) -> Sequence[str]:
        """Return the ids of the adapters that the worker holds."""


@dataclass(frozen=True)
class Timed(Generic[T]):
    """Result of a job, with its times.

    `queue_seconds` passed before its first unit. `run_seconds` is its part, by tokens, of the time
    of its units.
    """

    value: T
    queue_seconds: float
    run_seconds: float


WorkerState: TypeAlias = Literal["starting", "up", "draining", "down"]
"""A worker that is `draining` finishes its jobs, takes no more, and is then started again."""


@dataclass(frozen=True)
class WorkerStatus:
    """Status of one worker: `jobs` that wait or run on it, `restarts` since the server started.

    `memory_bytes` are those of its process in main memory; None where they are not known.
    """

    name: str
    state: WorkerState
    restarts: int
    jobs: int
    memory_bytes: int | None = field(default=None, compare=False)


class Executor(Protocol):
    """Sends jobs to workers.

    `deadline` is in seconds from the call; after it, calls raise
    `service.errors.DeadlineExceededError`. `on_progress` is called on the event loop after each
    unit that does not end the job, with all that is known by then. If its worker is lost, a job
    starts again from the beginning, and so does what is known.
    """

    async def start(self) -> ServedModel:
        """Wait until a first worker is up. Raises what loading raised if none can be loaded."""

    async def adapt(
        self,
        job: AdaptJob,
        *,
        tenant: str = DEFAULT_TENANT,
        deadline: float | None = None,
        on_progress: Callable[[Losses], None] | None = None,
    ) -> Timed[Adaptation]:
        """Return the adaptation.

        Raises what the worker raised, or `service.errors.WorkerLostError`.
        """

    async def predict(
        self,
        job: PredictJob,
        adapter: TaskPosterior | None,
        *,
        tenant: str = DEFAULT_TENANT,
        deadline: float | None = None,
        on_progress: Callable[[Partial], None] | None = None,
    ) -> Timed[Sequence[Prediction]]:
        """Return the predictions of `job` with its `adapter`, None for the global posterior.

        Raises as `adapt`.
        """

    def workers(self) -> Sequence[WorkerStatus]:
        """Return the status of every worker, in a fixed order."""

    async def restart(self) -> None:
        """Start every worker again, one after the other, each after it has finished its jobs.

        Return once all are up. Without effect where workers are not restarted.
        """

    async def close(self) -> None:
        """Drop all jobs and end the workers."""
