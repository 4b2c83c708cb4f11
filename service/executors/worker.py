"""The worker: a base model with a global posterior, loaded as the settings say. The one module here that needs torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from abmll.adaptation.run import Adaptation, AdaptRun, adapt_step
from abmll.adaptation.settings import AdaptSettings
from abmll.decoder.rows import collate, packed_length
from abmll.errors import PosteriorMismatchError
from abmll.memory_plan import MemoryPlan, measure_costs
from abmll.model import FewShotModel
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.posteriors import TaskPosterior
from abmll.prediction.run import Prediction, QueryRun
from abmll.prediction.stopping import StopRule
from abmll.seeds import derive_seed
from abmll.text.prompting import RECOMMENDED_TEMPLATE, EncodedPrompt, LabelledPrompt, PromptTemplate
from model_store.bases import load_base
from model_store.encoders import load_sentence_encoder
from model_store.entailment import load_entailment
from model_store.identity import BaseIdentity
from model_store.posteriors import LoadedPosterior, load_posterior, shipped_posteriors
from model_store.process_memory import available_bytes, return_large_blocks
from model_store.tensors import posterior_digest
from service.executors import contract
from service.executors.contract import (
    AdapterNotHeldError,
    AdaptJob,
    Job,
    Lane,
    Losses,
    Partial,
    PredictJob,
    Run,
    ServedModel,
    WorkerFatalError,
)
from service.executors.slots import SlotsFullError, SlotTable
from service.settings import UNTRAINED, Settings

log = logging.getLogger(__name__)


# A token of a gradient step costs this many of prediction: forward and backward against forward (2.2 measured), and noise.
ADAPT_TOKEN_COST = 3
# A pass that ran out of memory is tried again on half as many tokens, down to these.
FEWEST_TOKENS = 32
# A unit is never smaller, however slow the machine: batches below lose too much to overhead.
FEWEST_UNIT_TOKENS = 256


@dataclass(eq=False)
class _Adapting:
    """An adaptation: its trunk activations are the first unit, then each gradient step is one."""

    job: AdaptJob
    examples: Sequence[LabelledPrompt]
    run: AdaptRun | None = None

    lane: Lane = "adapt"

    @property
    def done(self) -> bool:
        return self.run is not None and self.run.done

    def next_tokens(self) -> int:
        if self.run is None:
            return sum(packed_length(example.prompt) for example in self.examples)
        return ADAPT_TOKEN_COST * self.run.prepared.tokens(self.run.next_batch)

    def result(self) -> Adaptation:
        if self.run is None or not self.run.done:
            raise RuntimeError("the run is not done")
        return self.run.result()

    def partial(self) -> Losses:
        return () if self.run is None else tuple(self.run.losses)


@dataclass(eq=False)
class _Predicting:
    """A prediction: each chunk of samples, or of written tokens, is a unit. `slot` names the adapter that it leases."""

    run: QueryRun
    slot: str | None

    lane: Lane = "predict"

    @property
    def done(self) -> bool:
        return self.run.done

    def next_tokens(self) -> int:
        return max(1, self.run.next_tokens)

    def result(self) -> Sequence[Prediction]:
        return self.run.predictions()

    def partial(self) -> Partial:
        return self.run.partial()


class ModelWorker:
    """Runs jobs on one `FewShotModel`, many in one batch. One thread owns it.

    `plan` bounds the adapters on the device and the tokens of a pass; `unit_tokens` bounds a unit in time, and so how long
    any job waits for another's. `max_samples` bounds what `samples="auto"` may take.
    """

    def __init__(
        self,
        model: FewShotModel,
        served: ServedModel,
        plan: MemoryPlan,
        unit_tokens: int = 2048,
        max_samples: int = 64,
    ) -> None:
        self._model, self._served, self._max_samples = model, served, max_samples
        self._slots = SlotTable(plan.slots, model.prior.values.numel(), model.backbone.device)
        self._step_tokens = plan.adapt_tokens
        self._chunk_tokens = min(plan.predict_tokens, unit_tokens)
        self._unit_tokens = unit_tokens

    @property
    def served(self) -> ServedModel:
        """What is loaded."""
        return self._served

    @property
    def tokens_per_unit(self) -> int:
        """See `Worker.tokens_per_unit`."""
        return self._unit_tokens

    def begin(self, job: Job) -> _Adapting | _Predicting:
        """See `Worker.begin`. Tokenises; leases the adapter's slot."""
        if isinstance(job, AdaptJob):
            return _Adapting(job, self._model.encode_support(job.support, truncate=job.truncate))
        posterior, slot = self._lease(job)
        auto = job.samples == "auto"
        try:
            run = self._model.begin_predict(
                posterior,
                job.queries,
                samples=self._max_samples if job.samples == "auto" else job.samples,
                stop=_stop_rule(job.gate or contract.StopRule()) if auto else None,
                seed=sequence_seed(job.seed, job.adapter_id),
                answers_per_sample=job.answers_per_sample,
                max_new_tokens=job.max_new_tokens,
                truncate=job.truncate,
                max_tokens=self._chunk_tokens,
            )
        except BaseException:
            if slot is not None:
                self._slots.release(slot)
            raise
        return _Predicting(run, slot)

    def advance(self, runs: Sequence[Run]) -> None:
        """See `Worker.advance`. Out of memory, it goes on in smaller passes, now and later."""
        try:
            self._adapt([run for run in runs if isinstance(run, _Adapting)])
            self._predict([run.run for run in runs if isinstance(run, _Predicting)])
        except RuntimeError as error:
            if "CUDA error" in str(error):  # the context is lost, with whatever it held
                raise WorkerFatalError(str(error)) from error
            raise

    def finish(self, run: Run) -> None:
        """Give the adapter's lease back."""
        if isinstance(run, _Predicting) and run.slot is not None:
            self._slots.release(run.slot)

    def held(self) -> Sequence[str]:
        """See `Worker.held`."""
        return self._slots.ids

    def _lease(self, job: PredictJob) -> tuple[TaskPosterior | None, str | None]:
        """The adapter on the device and the slot it lies in; as it came, and None, if every slot is in use."""
        try:
            return self._slots.acquire(job.adapter_id, job.posterior), job.adapter_id
        except KeyError:
            raise AdapterNotHeldError(job.adapter_id) from None
        except SlotsFullError:
            return job.posterior, None

    def _adapt(self, runs: Sequence[_Adapting]) -> None:
        stepping = [run.run for run in runs if run.run is not None]
        for run in runs:
            if run.run is None:
                run.run = self._model.start_adapt(run.examples, run.job.settings, run.job.seed)
        while stepping:
            try:
                return adapt_step(self._model.backbone, stepping, self._step_tokens)
            except RuntimeError as error:
                self._step_tokens = _fewer(min(self._step_tokens, _step_size(stepping)), error)

    def _predict(self, runs: Sequence[QueryRun]) -> None:
        while runs:
            try:
                return self._model.advance(runs)
            except RuntimeError as error:
                self._chunk_tokens = _fewer(max(run.next_tokens for run in runs), error)
                for run in runs:
                    run.shrink(self._chunk_tokens)


def sequence_seed(seed: int, adapter_id: str) -> int:
    """What names the samples of a request to the method: adapters differ in theirs under the same `seed`."""
    return derive_seed(seed, adapter_id)


def _fewer(tokens: int, error: RuntimeError) -> int:
    """Half of `tokens`, after `error` if it says that memory is short; otherwise, or where there is no less, raises it."""
    short = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    if not short or tokens <= FEWEST_TOKENS:
        raise error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log.warning("out of memory: from now on at most %d tokens a pass", tokens // 2)
    return tokens // 2


def _step_size(runs: Sequence[AdaptRun]) -> int:
    return sum(run.prepared.tokens(run.next_batch) for run in runs)


def _stop_rule(gate: contract.StopRule) -> StopRule:
    given = {name: value for name, value in asdict(gate).items() if value is not None}
    return StopRule(**given)


def load_worker(settings: Settings) -> ModelWorker:
    """The worker that `settings` describe. Raises `model_store.errors.StoreError`, `PosteriorMismatchError` and
    `UnsupportedModelError`.
    """
    return_large_blocks()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    posterior = choose_posterior(settings)
    trained_on = posterior.manifest.base if posterior else None
    quantisation = settings.quantisation or (trained_on.quantisation if trained_on else None)
    base = load_base(
        settings.model, quantisation=quantisation, device=settings.device, cache_dir=settings.cache_dir
    )
    equivalence = load_entailment(settings.nli_model, settings.device) if settings.nli_model else None
    if posterior is None:
        model = FewShotModel(
            base.model,
            base.tokenizer,
            PosteriorConfig(),
            template=RECOMMENDED_TEMPLATE,
            equivalence=equivalence,
        )
        return _worker(model, _served(model, base.identity, UNTRAINED), settings)
    check_base(posterior, base.identity)
    sentences = load_sentence_encoder(
        posterior.prior.config.sentence_encoder, device=settings.device, cache_dir=settings.cache_dir
    )
    model = FewShotModel(
        base.model,
        base.tokenizer,
        posterior.prior,
        template=PromptTemplate.from_json(posterior.manifest.template),
        defaults=AdaptSettings(**posterior.manifest.adapt),
        equivalence=equivalence,
        sentences=sentences,
    )
    served = _served(model, base.identity, posterior.manifest.id)
    return _worker(model, replace(served, calibrator=posterior.calibrator), settings)


def _worker(model: FewShotModel, served: ServedModel, settings: Settings) -> ModelWorker:
    """A worker whose budgets come from what this machine has and does; prints its plan."""
    if settings.compile:
        model.backbone.compile_trunk()
    costs = measure_costs(model.backbone, model.prior)
    plan = costs.plan(settings.memory_bytes or _free_bytes(model.backbone.device))
    unit_tokens = int(_tokens_per_second(model) * settings.unit_seconds)
    log.info("memory plan: %s; a unit has about %d tokens", plan.describe(), unit_tokens)
    return ModelWorker(model, served, plan, max(FEWEST_UNIT_TOKENS, unit_tokens), settings.max_samples)


def _free_bytes(device: torch.device) -> int:
    """What may be taken beside the base: of a GPU's free memory a tenth is left to its allocator; of a CPU's, half."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * 0.9)
    return available_bytes() // 2


def _tokens_per_second(model: FewShotModel) -> float:
    """Of the adapted layers, forward, on a small batch; the first pass warms up."""
    rows = collate([EncodedPrompt(tuple(range(1, 65)), ((1,), (2,)))] * 4, model.backbone.device)
    hidden = model.backbone.trunk(rows)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        with torch.no_grad():
            model.backbone.log_probs(hidden, rows, None).cpu()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return len(hidden) / min(seconds)


def choose_posterior(settings: Settings) -> LoadedPosterior | None:
    """The posterior to serve; None for an untrained one."""
    if settings.posterior == UNTRAINED:
        return None
    if settings.posterior is not None:
        return load_posterior(settings.posterior)
    shipped = map(load_posterior, shipped_posteriors())
    fitting = next((posterior for posterior in shipped if posterior.manifest.base.id == settings.model), None)
    if fitting is None:
        raise PosteriorMismatchError(f"no posterior ships for {settings.model!r}: name one, or `{UNTRAINED}`")
    return fitting


def check_base(posterior: LoadedPosterior, served: BaseIdentity) -> None:
    """Another base is refused; another quantisation of it works, somewhat worse, and is only told."""
    made_for = posterior.manifest.base
    if made_for == served:
        return
    if replace(made_for, quantisation=served.quantisation) != served:
        raise PosteriorMismatchError(
            f"posterior {posterior.manifest.id!r} was made for {made_for.id} at revision {made_for.revision}, "
            f"not for {served.id} at revision {served.revision}"
        )
    log.warning("posterior %s was trained on %s weights", posterior.manifest.id, made_for.quantisation)


def _served(model: FewShotModel, base: BaseIdentity, posterior_id: str) -> ServedModel:
    return ServedModel(
        base=base,
        posterior_id=posterior_id,
        posterior_digest=posterior_digest(model.prior),
        template=model.encoder.template.to_json(),
        defaults=model.defaults,
        encoder=model.encoder,
    )
