"""The worker: a base model with a global posterior, loaded as the settings say.

Of this folder, only this module and `slots.py` import torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import torch

from abmll.adaptation.run import Adaptation, AdaptRun, Room, adapt_step, can_rest, resting_step
from abmll.adaptation.support import TOKENS_PER_TRUNK, Preparation
from abmll.decoder.passes import Pace, Resting
from abmll.errors import PosteriorMismatchError
from abmll.memory_plan import MemoryPlan, measure_costs
from abmll.model import FewShotModel
from abmll.posterior.posteriors import TaskPosterior
from abmll.prediction.run import Prediction, QueryRun, resting_advance
from abmll.seeds import derive_seed
from abmll.speed import counter_of, measure_speed, probes_of
from abmll.work import Speed, Work
from model_store.devices import model_has_to_fit, says_memory_is_short
from model_store.models import LoadedModel, Start, load_models
from model_store.posteriors import DEFAULT_POSTERIORS, LoadedPosterior, load_posterior
from model_store.pretrained.bases import default_cache_dir
from model_store.pretrained.entailment import load_entailment
from model_store.process_memory import available_bytes, return_large_blocks
from model_store.tensors import posterior_digest
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
    Worker,
    WorkerFatalError,
)
from service.executors.known_speeds import best_known, machine
from service.executors.several_posteriors import PosteriorsWorker
from service.executors.slots import SlotsFullError, SlotTable
from service.settings import Settings
from service.settings.model import UNTRAINED

log = logging.getLogger(__name__)


# A token of a gradient step costs as much as this many tokens of a prediction. Forward and backward
# take 2.2 times as long as forward (measured); the rest is for the noise.
ADAPT_TOKEN_COST = 3
# A pass that ran out of memory is tried again with half as many tokens, at least these.
FEWEST_TOKENS = 32
# Least tokens of a unit, also on a slow machine: overhead is too large in smaller batches.
FEWEST_UNIT_TOKENS = 256
# Least seconds that a pass of a toy model is taken for, where the clock does not see it.
LEAST_SECONDS = 1e-6


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
        return self.run.result()

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


def load_worker(settings: Settings) -> Worker:
    """Load the worker that `settings` describe, with every posterior that they name.

    Raises `model_store.errors.StoreError`, `PosteriorMismatchError` and `UnsupportedModelError`.
    """
    return_large_blocks()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    posteriors = [choose_posterior(settings), *map(_named_posterior, settings.other_posteriors)]
    with model_has_to_fit(settings.device):
        models = load_models(
            settings.model,
            [Start.of(posterior) if posterior else Start() for posterior in posteriors],
            quantisation=settings.quantisation,
            dtype=settings.dtype,
            device=settings.device,
            cache_dir=settings.cache_dir,
            equivalence=load_entailment(settings.nli_model, settings.device) if settings.nli_model else None,
            readout_scale=settings.readout_scale,
        )
        found = {served.posterior_digest: (model, served) for model, served in map(_with_served, models)}
        # Posteriors share the memory evenly.
        # Those of a Ray cluster may be on other machines.
        beside = 1 if settings.ray_address is not None else settings.workers
        free = settings.memory_bytes or _free_bytes(models[0].model.backbone.device, beside)
        speeds: dict[Hashable, Speed] = {}
        workers = []
        for model, served in found.values():
            if settings.compile:
                model.backbone.compile_trunk()
            alike = _speed_key(model)
            if alike not in speeds:
                speeds[alike] = measure_speed(model)  # it takes seconds
            known = _best_known(model, served, settings, speeds[alike])
            workers.append(_worker(model, served, settings, free // len(found), speeds[alike], known))
        return workers[0] if len(workers) == 1 else PosteriorsWorker(workers)


def _best_known(model: FewShotModel, served: ServedModel, settings: Settings, measured: Speed) -> Speed:
    """Return the speed for prices: the best of this start and of those before it."""
    device = model.backbone.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads, compiled = torch.get_num_threads(), settings.compile
    key = served.base, _speed_key(model), threads, compiled, torch.__version__, machine(name)
    folder = (settings.cache_dir or default_cache_dir()) / "speeds"
    usual = sum((probe.work for probe in probes_of(model)), Work())
    return best_known(folder, key, measured, usual)


def _worker(
    model: FewShotModel,
    served: ServedModel,
    settings: Settings,
    memory_bytes: int,
    speed: Speed,
    known: Speed,
) -> ModelWorker:
    """Return a worker of this speed, whose budgets are measured on this machine, and log them.

    Prices are by the speed that is `known`.
    """
    costs = measure_costs(model.backbone, model.prior)
    plan = costs.plan(memory_bytes)
    unit_tokens = int(_tokens_per_second(model, speed) * settings.unit_seconds)
    log.info(
        "posterior %s: memory plan: %s; a unit has about %d tokens",
        served.posterior_id,
        plan.describe(),
        unit_tokens,
    )
    return ModelWorker(model, served, plan, max(FEWEST_UNIT_TOKENS, unit_tokens), known)


def _speed_key(model: FewShotModel) -> Hashable:
    """Return what is equal for models of one base that do the same work for each request."""
    config = model.prior.config
    return config.layout, config.noise, config.similarity is None, config.sentence_encoder


def _free_bytes(device: torch.device, workers: int) -> int:
    """Return the bytes that each of so many workers of this machine may use beside the base.

    They are nine tenths of a GPU's free memory, since its allocator needs some: a GPU is one
    worker's. Main memory is shared: each has an equal part of half of it, or of what the
    container's limit leaves.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * 0.9)
    return available_bytes() // 2 // workers


def _tokens_per_second(model: FewShotModel, speed: Speed) -> float:
    """Return the speed of the adapted layers, forward without noise, in passes of 256 tokens."""
    counter, tokens = counter_of(model), 256
    layers = counter.mean + counter.sampled
    seconds = speed.seconds(Work(frozen_passes=layers, frozen_tokens=layers * tokens))
    return tokens / max(seconds, LEAST_SECONDS)


def choose_posterior(settings: Settings) -> LoadedPosterior | None:
    """Return the posterior to serve; None for an untrained one. Raises `PosteriorMismatchError`."""
    if settings.posterior is not None:
        return _named_posterior(settings.posterior)
    default = DEFAULT_POSTERIORS.get(settings.model)
    if default is None:
        raise PosteriorMismatchError(
            f"no posterior is the default for {settings.model!r}: name one with the setting posterior, or "
            f"`{UNTRAINED}`"
        )
    return load_posterior(default)


def _named_posterior(name: str) -> LoadedPosterior | None:
    return None if name == UNTRAINED else load_posterior(name)


def _with_served(loaded: LoadedModel) -> tuple[FewShotModel, ServedModel]:
    model = loaded.model
    return model, ServedModel(
        base=loaded.base,
        posterior_id=loaded.manifest.id if loaded.manifest else UNTRAINED,
        posterior_digest=posterior_digest(model.prior),
        template=model.encoder.template.to_json(),
        defaults=model.defaults,
        encoder=model.encoder,
    )
