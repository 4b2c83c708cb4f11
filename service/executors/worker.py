"""The worker: a base model with a global posterior.

Of this folder, only this module, `loading.py` and `slots.py` import torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import torch

from abmll.adaptation.run import Adaptation, AdaptRun, Room, adapt_step, can_rest, resting_step
from abmll.adaptation.support import TOKENS_PER_TRUNK, Preparation
from abmll.decoder.passes import Pace, Resting
from abmll.memory_plan import MemoryPlan
from abmll.model import FewShotModel
from abmll.posterior.posteriors import TaskPosterior
from abmll.prediction.run import Prediction, QueryRun, resting_advance
from abmll.seeds import derive_seed
from abmll.speed import counter_of
from abmll.work import Speed
from model_store.devices import says_memory_is_short
from service.executors.contract import (
    GLOBAL,
    AdapterNotHeldError,
    AdaptJob,
    Job,
    Lane,
    Losses,
    Partial,
    Prices,
    Run,
    ServedModel,
    WorkerFatalError,
)
from service.executors.slots import SlotsFullError, SlotTable

log = logging.getLogger(__name__)


# A token of a gradient step costs as much as this many tokens of a prediction. Forward and backward
# take 2.2 times as long as forward (measured); the rest is for the noise.
ADAPT_TOKEN_COST = 3
# A pass that ran out of memory is tried again with half as many tokens, at least these.
FEWEST_TOKENS = 32


class Shrinking(Protocol):
    """Work whose units can be made smaller."""

    @property
    def done(self) -> bool:
        """Whether there is no next unit."""

    @property
    def held_tokens(self) -> int:
        """The tokens that the next unit holds in memory."""

    def shrink(self, max_tokens: int) -> None:
        """Make the units smaller: of at most `max_tokens`, or what cannot be divided."""


AnyShrinking = TypeVar("AnyShrinking", bound=Shrinking)


@dataclass(eq=False)
class _Adapting:
    """Run of an adaptation. The first units prepare the support; the others make gradient steps.

    What is more than a unit of `unit_tokens` is done in several: it is `resting` between them.
    """

    job: AdaptJob
    preparation: Preparation
    unit_tokens: int
    run: AdaptRun | None = None
    resting: Resting[None] | None = None

    lane: Lane = "adapt"

    @property
    def done(self) -> bool:
        return self.run is not None and self.run.done

    @property
    def is_long(self) -> bool:
        """Whether the next step is more than a unit."""
        return self._tokens > self.unit_tokens

    @property
    def _tokens(self) -> int:
        if self.run is None:
            return self.preparation.next_tokens
        return ADAPT_TOKEN_COST * self.run.prepared.tokens(self.run.next_batch)

    def next_tokens(self) -> int:
        if self.run is not None and not can_rest(self.run):
            return self._tokens
        return min(self._tokens, self.unit_tokens)

    def result(self) -> Adaptation:
        if self.run is None or not self.run.done:
            raise RuntimeError("the run is not done")
        result = self.run.result()
        if self.run.losses or self.job.needs_values:
            return result
        # They need not go to the server, to the disk and back.
        return replace(result, posterior=result.posterior.without_values())

    def partial(self) -> Losses:
        return () if self.run is None else tuple(self.run.losses)


@dataclass(eq=False)
class _Predicting:
    """Run of a prediction. Each unit is a chunk of samples, or of written tokens.

    `slot` is the id of the adapter whose slot it leases; None where every slot was in use. What is
    more than a unit of `unit_tokens` is done in several: it is `resting` between them.
    """

    run: QueryRun
    slot: str | None
    unit_tokens: int
    resting: Resting[None] | None = None

    lane: Lane = "predict"

    @property
    def done(self) -> bool:
        return self.run.done

    @property
    def is_long(self) -> bool:
        """Whether the next unit of the run is more than one of the worker, or shares no pass."""
        return self.run.kind == "write" or self.run.next_tokens + self.run.once_tokens > self.unit_tokens

    def next_tokens(self) -> int:
        return max(1, min(self.run.next_tokens, self.unit_tokens))

    def result(self) -> Sequence[Prediction]:
        return self.run.predictions()

    def partial(self) -> Partial:
        return self.run.partial()


class ModelWorker:
    """Does jobs on one `FewShotModel`, many in one batch. One thread owns it.

    `plan` bounds the adapters on the device and the tokens of a pass. `unit_tokens` bounds the time
    of a unit, and so how long a job waits for those of others. With the `speed` of the model, the
    served model has prices.
    """

    def __init__(
        self,
        model: FewShotModel,
        served: ServedModel,
        plan: MemoryPlan,
        unit_tokens: int = 2048,
        speed: Speed | None = None,
    ) -> None:
        self._model = model
        self._slots = SlotTable(plan.slots, model.prior.values.numel(), model.backbone.device)
        # While passes rest, what is kept of them and another pass share the memory of one.
        self._room = Room(plan.adapt_tokens // 2)
        self._step_tokens = max(FEWEST_TOKENS, plan.adapt_tokens - self._room.tokens)
        self._chunk_tokens = min(max(FEWEST_TOKENS, plan.predict_tokens // 2), unit_tokens)
        self._unit_tokens, self._adaptations = unit_tokens, plan.adaptations
        self._layers = model.backbone.depth - model.backbone.layout.first_layer
        self._support_tokens = min(unit_tokens, TOKENS_PER_TRUNK)
        self._served = replace(served, prices=self._prices(speed)) if speed else served

    def _prices(self, speed: Speed) -> Prices:
        counter = replace(
            counter_of(self._model),
            chunk_tokens=self._chunk_tokens,
            support_tokens=self._support_tokens,
            step_tokens=self._step_tokens,
        )
        return Prices(counter, speed)

    @property
    def served(self) -> ServedModel:
        """See `Worker.served`."""
        return self._served

    @property
    def tokens_per_unit(self) -> int:
        """See `Worker.tokens_per_unit`."""
        return self._unit_tokens

    @property
    def adaptations_at_once(self) -> int:
        """See `Worker.adaptations_at_once`. Each holds its optimiser's state between its units."""
        return self._adaptations

    def begin(self, job: Job, adapter: TaskPosterior | None = None) -> _Adapting | _Predicting:
        """See `Worker.begin`. A prediction leases the slot of its adapter."""
        if isinstance(job, AdaptJob):
            return _Adapting(job, Preparation(job.examples, self._support_tokens), self._unit_tokens)
        posterior, slot = self._lease(job.adapter_id, adapter)
        settings = replace(job.settings, seed=sequence_seed(job.settings.seed, job.adapter_id))
        try:
            run = self._model.start_predict(posterior, job.prompts, settings, self._chunk_tokens)
        except BaseException:
            if slot is not None:
                self._slots.release(slot)
            raise
        return _Predicting(run, slot, self._unit_tokens)

    def advance(self, runs: Sequence[Run]) -> None:
        """See `Worker.advance`. When memory is short, this and all later passes are smaller.

        Runs that are done are left alone: after an error beside them they come again.
        """
        runs = [run for run in runs if not run.done]
        try:
            self._adapt([run for run in runs if isinstance(run, _Adapting)])
            self._predict([run for run in runs if isinstance(run, _Predicting)])
        except RuntimeError as error:
            if "CUDA error" in str(error):  # the CUDA context is lost, and the model with it
                raise WorkerFatalError(str(error)) from error
            raise

    def finish(self, run: Run) -> None:
        """See `Worker.finish`. Ends what rests, and the lease of the adapter's slot."""
        if isinstance(run, _Adapting | _Predicting) and run.resting is not None:
            run.resting.close()
        if isinstance(run, _Predicting) and run.slot is not None:
            self._slots.release(run.slot)

    def held(self) -> Sequence[str]:
        """See `Worker.held`."""
        return self._slots.ids

    def _lease(
        self, adapter_id: str, adapter: TaskPosterior | None
    ) -> tuple[TaskPosterior | None, str | None]:
        """Return the adapter on the device, and its id; `adapter`, None if every slot is in use.

        Both are None for the global posterior, which takes no slot.
        """
        if adapter_id == GLOBAL:
            return None, None
        try:
            return self._slots.acquire(adapter_id, adapter), adapter_id
        except KeyError:
            raise AdapterNotHeldError(adapter_id) from None
        except SlotsFullError:
            return adapter, None

    def _adapt(self, runs: Sequence[_Adapting]) -> None:
        together = [run for run in runs if run.run is not None and not run.is_long]
        for run in runs:
            if run.run is None:
                self._prepare(run)
            elif run not in together:
                self._step([run], partial(self._go_on_with_step, run, run.run))
        if together:
            self._step(together, lambda tokens: adapt_step(self._model.backbone, _runs(together), tokens))

    def _step(self, adapting: Sequence[_Adapting], make: Callable[[int], None]) -> None:
        """Call `make` with the most tokens of a pass, and again with fewer while memory is short."""
        tokens = self._step_tokens
        sizes = [run.prepared.tokens([i]) for run in _runs(adapting) for i in run.next_batch]
        while True:
            try:
                make(tokens)
                break
            except RuntimeError as error:
                if tokens < min(sizes):  # every pass has one example already
                    raise
                tokens = _fewer(min(tokens, sum(sizes)), error)
        self._step_tokens = tokens

    def _go_on_with_step(self, adapting: _Adapting, run: AdaptRun, tokens: int) -> None:
        _go_on(adapting, lambda: resting_step(self._model.backbone, run, tokens, self._pace(), self._room))

    def _prepare(self, run: _Adapting) -> None:
        preparation, backbone = run.preparation, self._model.backbone
        _until_it_fits(
            [preparation],
            lambda _: _go_on(run, lambda: preparation.chunk(backbone, self._pace())),
            TOKENS_PER_TRUNK,
        )
        if preparation.done:
            prepared = preparation.result()
            run.run = self._model.adapt_prepared(prepared, run.job.settings, run.job.seed)

    def _predict(self, runs: Sequence[_Predicting]) -> None:
        long = [run for run in runs if run.resting is not None or run.is_long]
        short = [run.run for run in runs if run not in long]
        for run in long:
            self._chunk_tokens = _until_it_fits([run.run], partial(self._go_on_with, run), self._chunk_tokens)
        if short:
            self._chunk_tokens = _until_it_fits(short, self._model.advance, self._chunk_tokens)

    def _go_on_with(self, predicting: _Predicting, runs: Sequence[QueryRun]) -> None:
        for run in runs:
            _go_on(predicting, partial(resting_advance, self._model.backbone, run, self._pace()))

    def _pace(self) -> Pace:
        return Pace(self._unit_tokens * self._layers)


def _runs(adapting: Sequence[_Adapting]) -> list[AdaptRun]:
    return [each.run for each in adapting if each.run is not None]


def _go_on(run: _Adapting | _Predicting, begin: Callable[[], Resting[None]]) -> None:
    """Go on with what rests in `run`, or with what `begin` makes, up to the next rest or its end.

    Where it raises, nothing rests, and the next call begins again.
    """
    resting, run.resting = run.resting or begin(), None
    with suppress(StopIteration):
        next(resting)
        run.resting = resting


def sequence_seed(seed: int, adapter_id: str) -> int:
    """Return the seed of a request's samples, which differs between adapters."""
    return derive_seed(seed, adapter_id)


def _until_it_fits(
    runs: Sequence[AnyShrinking], advance: Callable[[Sequence[AnyShrinking]], None], max_tokens: int
) -> int:
    """Advance `runs`, and again with smaller units as long as memory is short.

    Return `max_tokens`, or the fewer tokens that fitted. Raises what `advance` raises, and its
    shortage of memory where no unit gets smaller; a run may still fit alone.
    """
    while True:
        try:
            advance(runs)
            return max_tokens
        except RuntimeError as error:
            runs = [run for run in runs if not run.done]  # some of them were advanced before it
            held = [run.held_tokens for run in runs]
            fewer = _fewer(max(held), error)
            for run in runs:
                run.shrink(fewer)
            if sum(run.held_tokens for run in runs) >= sum(held):
                raise
            max_tokens = min(max_tokens, fewer)


def _fewer(tokens: int, error: RuntimeError) -> int:
    """Return half of `tokens` if `error` says that memory is short.

    Raises `error` otherwise, and where `tokens` is the least already.
    """
    if not says_memory_is_short(error) or tokens <= FEWEST_TOKENS:
        raise error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log.warning("out of memory: the pass is tried again with at most %d tokens", tokens // 2)
    return tokens // 2
