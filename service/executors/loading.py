"""Loading a worker as the settings say: its base, its posteriors, its memory and its speed."""

from __future__ import annotations

import logging
from collections.abc import Hashable

import torch

from abmll.errors import PosteriorMismatchError
from abmll.memory_plan import measure_costs
from abmll.model import FewShotModel
from abmll.speed import counter_of, measure_speed, probes_of
from abmll.work import Speed, Work
from model_store.devices import model_has_to_fit
from model_store.models import LoadedModel, Start, load_models
from model_store.posteriors import DEFAULT_POSTERIORS, LoadedPosterior, load_posterior
from model_store.pretrained.bases import default_cache_dir
from model_store.pretrained.entailment import load_entailment
from model_store.process_memory import available_bytes, return_large_blocks
from model_store.tensors import posterior_digest
from service.executors.contract import ServedModel, Worker
from service.executors.known_speeds import best_known, machine
from service.executors.several_posteriors import PosteriorsWorker
from service.executors.worker import ModelWorker
from service.settings import Settings
from service.settings.model import UNTRAINED

log = logging.getLogger(__name__)

# Least tokens of a unit, also on a slow machine: overhead is too large in smaller batches.
FEWEST_UNIT_TOKENS = 256
# Least seconds that a pass of a toy model is taken for, where the clock does not see it.
LEAST_SECONDS = 1e-6


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
    dtype = str(model.backbone.dtype)
    return config.layout, config.noise, config.similarity is None, config.sentence_encoder, dtype


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
