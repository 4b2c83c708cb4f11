"""What the engine asks of whoever does the model work.

A `Worker` owns a model and is called from one thread. An `Executor` carries jobs to workers without blocking the event
loop, and promises: a job whose awaiter is cancelled before it starts never runs; one that has started runs to its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from abmll.adapt import Adaptation, AdaptSettings
    from abmll.posterior import TaskPosterior
    from abmll.predict import Prediction
    from abmll.prompting import EncodedPrompt
    from abmll.tasks import Example, Query
    from model_store.identity import BaseIdentity

T = TypeVar("T")


class Encoder(Protocol):
    """The part of `abmll.prompting.PromptEncoder` that admission needs; threads share it."""

    @property
    def max_tokens(self) -> int:
        """The context."""

    def encode(self, query: Query, *, truncate: bool = False, reserve_tokens: int = 0) -> EncodedPrompt:
        """Raises `abmll.errors.PromptTooLongError` or `OptionsError`."""

    def encode_example(self, example: Example, *, truncate: bool = False) -> EncodedPrompt:
        """As `encode`."""


@dataclass(frozen=True)
class ServedModel:
    """What a worker has loaded. `base`, `posterior_digest` and `template` decide results, so they go into adapter ids."""

    base: BaseIdentity
    posterior_id: str
    posterior_digest: str
    template: Mapping[str, str]
    defaults: AdaptSettings
    encoder: Encoder


@dataclass(frozen=True)
class AdaptJob:
    """Fit a task posterior; equal jobs give equal posteriors."""

    support: tuple[Example, ...]
    settings: AdaptSettings
    seed: int
    truncate: bool


@dataclass(frozen=True)
class PredictJob:
    """Answer `queries` with `posterior`; equal jobs give equal predictions."""

    posterior: TaskPosterior
    queries: tuple[Query, ...]
    samples: int
    seed: int
    max_new_tokens: int
    truncate: bool


class Worker(Protocol):
    """Owns the model; not thread-safe."""

    @property
    def served(self) -> ServedModel:
        """What is loaded."""

    def adapt(self, job: AdaptJob) -> Adaptation:
        """Raises `abmll.errors.AbmllError` for what the method refuses."""

    def predict(self, job: PredictJob) -> Sequence[Prediction]:
        """One prediction a query, in order. Raises as `adapt`."""


@dataclass(frozen=True)
class Timed(Generic[T]):
    """A result, how long its job waited, and how long it ran."""

    value: T
    queue_seconds: float
    run_seconds: float


class Executor(Protocol):
    """Carries jobs to workers."""

    async def start(self) -> ServedModel:
        """Load the model; raises whatever loading raises."""

    async def adapt(self, job: AdaptJob) -> Timed[Adaptation]:
        """Run `Worker.adapt`."""

    async def predict(self, job: PredictJob) -> Timed[Sequence[Prediction]]:
        """Run `Worker.predict`."""

    async def close(self) -> None:
        """Drop what has not started and let go of the workers."""
