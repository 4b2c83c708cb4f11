"""The worker: a base model with a global posterior, loaded as the settings say. The one module here that needs torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from abmll.adapt import Adaptation, AdaptSettings
from abmll.errors import PosteriorMismatchError
from abmll.model import FewShotModel
from abmll.posterior import AdapterConfig
from abmll.predict import Prediction
from abmll.prompting import PromptTemplate
from model_store.bases import load_base
from model_store.identity import BaseIdentity
from model_store.posteriors import LoadedPosterior, load_posterior, shipped_posteriors
from model_store.tensors import posterior_digest
from service.executors.contract import (
    AdapterNotHeldError,
    AdaptJob,
    Job,
    Lane,
    PredictJob,
    Run,
    ServedModel,
    lane_of,
)
from service.settings import UNTRAINED, Settings

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _WholeRun:
    """A job as a single unit."""

    job: Job
    outcome: Adaptation | Sequence[Prediction] | None = None

    @property
    def lane(self) -> Lane:
        return lane_of(self.job)

    @property
    def done(self) -> bool:
        return self.outcome is not None

    def next_tokens(self) -> int:
        return 1

    def result(self) -> Adaptation | Sequence[Prediction]:
        if self.outcome is None:
            raise RuntimeError("the run is not done")
        return self.outcome


class ModelWorker:
    """Runs jobs on one `FewShotModel`, each as one unit. One thread owns it."""

    tokens_per_unit = 1

    def __init__(self, model: FewShotModel, served: ServedModel) -> None:
        self._model, self._served = model, served

    @property
    def served(self) -> ServedModel:
        """What is loaded."""
        return self._served

    def begin(self, job: Job) -> _WholeRun:
        """See `Worker.begin`; it holds no adapter."""
        if isinstance(job, PredictJob) and job.posterior is None:
            raise AdapterNotHeldError(job.adapter_id)
        return _WholeRun(job)

    def advance(self, runs: Sequence[Run]) -> None:
        """Do the whole of each job."""
        for run in runs:
            assert isinstance(run, _WholeRun)
            run.outcome = self._work(run.job)

    def finish(self, run: Run) -> None:
        """Nothing is held."""

    def held(self) -> Sequence[str]:
        """Nothing."""
        return ()

    def _work(self, job: Job) -> Adaptation | Sequence[Prediction]:
        if isinstance(job, AdaptJob):
            return self._model.adapt(job.support, job.settings, job.seed, truncate=job.truncate)
        return self._model.predict(
            job.posterior,
            job.queries,
            samples=16 if job.samples == "auto" else job.samples,
            seed=job.seed,
            max_new_tokens=job.max_new_tokens,
            truncate=job.truncate,
        )


def load_worker(settings: Settings) -> ModelWorker:
    """The worker that `settings` describe. Raises `model_store.errors.StoreError` and `PosteriorMismatchError`."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    posterior = _choose_posterior(settings)
    trained_on = posterior.manifest.base if posterior else None
    quantisation = settings.quantisation or (trained_on.quantisation if trained_on else None)
    base = load_base(
        settings.model, quantisation=quantisation, device=settings.device, cache_dir=settings.cache_dir
    )
    if posterior is None:
        model = FewShotModel(base.model, base.tokenizer, AdapterConfig())
        return ModelWorker(model, _served(model, base.identity, UNTRAINED))
    _check_base(posterior, base.identity)
    model = FewShotModel(
        base.model,
        base.tokenizer,
        posterior.prior,
        template=PromptTemplate.from_json(posterior.manifest.template),
        defaults=AdaptSettings(**posterior.manifest.adapt),
    )
    return ModelWorker(model, _served(model, base.identity, posterior.manifest.id))


def _choose_posterior(settings: Settings) -> LoadedPosterior | None:
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


def _check_base(posterior: LoadedPosterior, served: BaseIdentity) -> None:
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
