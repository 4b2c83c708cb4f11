"""A meta-training run from one configuration file to an artifact: base model, data, method, result."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter, ValidationError

from abmll.adaptation.run import TOKENS_PER_BACKWARD
from abmll.adaptation.settings import AdaptSettings
from abmll.errors import AbmllError
from abmll.meta.collection import Collection
from abmll.meta.inspection import TaskReport, inspect_task, shared_inputs, visit_tokens
from abmll.meta.train import POINT_RULES, MetaSettings, meta_train, trained_prior
from abmll.meta.whitening import fit_whitening
from abmll.model import FewShotModel
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.posteriors import GlobalPosterior
from abmll.text.prompting import RECOMMENDED_TEMPLATE, PromptTemplate
from model_store.bases import LoadedBase, load_base
from model_store.catalogue import Dtype, Quantisation
from model_store.identity import BaseIdentity

# Visits that a dry run times, after one that warms up.
TIMED_VISITS = 3


@dataclass(frozen=True)
class DataSettings:
    """Which tasks: `tasks`, or `split` of the collection at `folder` (its training side), or all; never those in `leave_out`.

    A relative `folder` is looked up from the working directory.
    """

    folder: Path
    split: str | None = None
    tasks: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that determines a run.

    `posterior` is the configuration of the finished posterior. Training itself is without its noise scale, its temperature and
    its Gaussian process, which are calibrated afterwards.
    `device`, `dtype`, `keep_dequantised` and `threads` are for the machine that trains (see `load_base`), and so is
    `tokens_per_pass`, what one backward pass may hold.
    """

    id: str
    data: DataSettings
    base: str = "smollm2-135m-instruct"
    quantisation: Quantisation | None = None
    posterior: PosteriorConfig = field(default_factory=PosteriorConfig)
    template: PromptTemplate = RECOMMENDED_TEMPLATE
    meta: MetaSettings = field(default_factory=MetaSettings)
    serve: AdaptSettings = field(default_factory=AdaptSettings)
    device: str = "cpu"
    dtype: Dtype | None = None
    keep_dequantised: bool | None = None
    tokens_per_pass: int = TOKENS_PER_BACKWARD
    threads: int | None = None

    @classmethod
    def read(cls, path: Path) -> TrainingConfig:
        """Parse a YAML file; one with `like: OTHER.yaml` holds what differs from that.

        Raises `AbmllError` naming the wrong field, and where `like` goes in a circle.
        """
        try:
            return TypeAdapter(cls).validate_python(_document(path), extra="forbid")
        except (ValidationError, yaml.YAMLError, OSError) as error:
            raise AbmllError(f"{path.name}: {error}") from error


def _document(path: Path, passed: tuple[Path, ...] = ()) -> Any:
    if path.resolve() in passed:
        raise AbmllError(f"`like` comes back to {path.name}")
    values = yaml.safe_load(path.read_text("utf-8"))
    if not isinstance(values, dict) or "like" not in values:
        return values
    return _merged(_document(path.parent / values.pop("like"), (*passed, path.resolve())), values)


def _merged(values: Any, changes: Any) -> Any:
    """`values` with `changes` in place of what they name: mappings key by key, all else whole."""
    if not isinstance(values, dict) or not isinstance(changes, dict):
        return changes
    return {**values, **{key: _merged(values.get(key), change) for key, change in changes.items()}}


@dataclass(frozen=True)
class TrainingResult:
    """The trained theta, the base it belongs to, and what the manifest says of the run.

    `adapt` are the settings to serve with, `record` what was run on which data, `metrics` how its losses went.
    """

    prior: GlobalPosterior
    base: BaseIdentity
    adapt: dict[str, Any]
    record: dict[str, Any]
    metrics: dict[str, Any]


def run_training(
    config: TrainingConfig, folder: Path, on_visit: Callable[[dict[str, Any]], None], *, resume: bool = True
) -> TrainingResult:
    """Load the base, meta-train in `folder` (checkpoint, metrics), return the result. Resumes a run found there."""
    collection, names, base, model = _prepare(config)
    folder.mkdir(parents=True, exist_ok=True)
    started_at = folder / "commit"
    if not started_at.exists():
        started_at.write_text(commit() + "\n")
    for metrics in meta_train(
        model,
        collection.read(names),
        config.meta,
        folder,
        resume=resume,
        tokens_per_pass=config.tokens_per_pass,
    ):
        on_visit(metrics)
    prior = trained_prior(model, folder)
    noise = replace(prior.config.noise, scale=config.posterior.noise.scale)
    calibrated = replace(config.posterior, noise=noise)
    whitening = None
    if calibrated.similarity:
        whitening = fit_whitening(model, collection.read(names), config.meta.max_row_tokens)
    return TrainingResult(
        replace(prior, config=calibrated, whitening=whitening),
        base.identity,
        asdict(config.serve),
        {**_record(config, collection, names), "commit": started_at.read_text().strip()},
        _losses(folder),
    )


@dataclass(frozen=True)
class DryRun:
    """What a run would meet: a report by task, tasks that share inputs, tokens of a visit, and the run's estimated seconds."""

    tasks: tuple[TaskReport, ...]
    shared: tuple[tuple[str, str, int], ...]
    tokens_per_visit: float
    seconds: float


def dry_run(config: TrainingConfig) -> DryRun:
    """Read and check all of the run's data and time a few of its visits, keeping nothing.

    The estimate takes time to be proportional to tokens. Where no example of a task fits there is none: it is not a number.
    """
    collection, names, _, model = _prepare(config)
    tasks = collection.read(names)
    reports = [inspect_task(model.encoder, task, config.meta) for task in tasks]
    each = visit_tokens(reports, config.meta)
    seconds = math.nan
    if all(report.fitting for report in reports):
        by_name = {report.name: report for report in reports}
        timed = replace(config.meta, visits=1 + TIMED_VISITS)
        with tempfile.TemporaryDirectory() as folder:
            visits = list(meta_train(model, tasks, timed, Path(folder), resume=False))[
                1:
            ]  # the first warms up
        tokens = sum(
            visit_tokens([by_name[name] for name in visit["tasks"]], config.meta) for visit in visits
        )
        seconds = sum(visit["seconds"] for visit in visits) / tokens * each * config.meta.visits
    return DryRun(tuple(reports), tuple(shared_inputs(tasks)), each, seconds)


def _prepare(config: TrainingConfig) -> tuple[Collection, list[str], LoadedBase, FewShotModel]:
    if config.threads:
        torch.set_num_threads(config.threads)
    collection = Collection.open(config.data.folder)
    names = [name for name in _chosen(config.data, collection) if name not in config.data.leave_out]
    base = load_base(
        config.base,
        quantisation=config.quantisation,
        device=config.device,
        keep_dequantised=config.keep_dequantised,
        dtype=config.dtype,
    )
    point = config.meta.outer in POINT_RULES
    noise = replace(config.posterior.noise, scale=1.0)
    untrained = PosteriorConfig(config.posterior.layout, noise.as_point() if point else noise)
    model = FewShotModel(base.model, base.tokenizer, untrained, template=config.template)
    model.prior = model.prior.without_noise() if point else model.prior
    return collection, names, base, model


def _chosen(data: DataSettings, collection: Collection) -> list[str]:
    if data.tasks and data.split:
        raise AbmllError("data has `tasks` or a `split`, not both")
    if data.split:
        return collection.names(data.split, "train")
    return list(data.tasks or collection.about)


def _record(config: TrainingConfig, collection: Collection, names: list[str]) -> dict[str, Any]:
    licences = ("licence", "licence_of_original_unverified")
    return {
        "config": TypeAdapter(TrainingConfig).dump_python(config, mode="json"),
        "data": [
            {"task": name, **{key: collection.about[name].get(key, "") for key in licences}} for name in names
        ],
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "seed": config.meta.seed,
    }


def _losses(folder: Path) -> dict[str, Any]:
    """Mean inner losses (nats per example) at the first and last step, over the first and last tenth of the visits."""
    visits = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    tenth = max(1, len(visits) // 10)
    parts = {"first_tenth": visits[:tenth], "last_tenth": visits[-tenth:]}
    return {
        "visits": len(visits),
        "seconds": round(sum(visit["seconds"] for visit in visits)),
        "inner_loss_before": {name: _mean([v["losses"][0] for v in part]) for name, part in parts.items()},
        "inner_loss_after": {name: _mean([v["losses"][-1] for v in part]) for name, part in parts.items()},
    }


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 4)


def commit() -> str:
    """The checkout's commit, or `unknown` outside of one."""
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"],  # noqa: S607
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    )  # fmt: skip
    return found.stdout.strip() or "unknown"
