"""A meta-training run from one configuration file to an artifact: base model, data, method, result."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter, ValidationError

from abmll.adapt import AdaptSettings
from abmll.errors import AbmllError
from abmll.meta.collection import Collection
from abmll.meta.train import MetaSettings, meta_train, trained_prior
from abmll.model import FewShotModel
from abmll.posterior import AdapterConfig, GlobalPosterior
from abmll.prompting import PromptTemplate
from model_store.bases import load_base
from model_store.catalogue import Quantisation
from model_store.identity import BaseIdentity


@dataclass(frozen=True)
class DataSettings:
    """Which tasks: `split` of the collection at `folder` (its training side), or all tasks; never those in `leave_out`.

    A relative `folder` is looked up from the working directory.
    """

    folder: Path
    split: str | None = None
    leave_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that determines a run. `noise_scale` is applied to the finished posterior."""

    id: str
    data: DataSettings
    base: str = "smollm2-135m-instruct"
    quantisation: Quantisation | None = None
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    template: PromptTemplate = field(default_factory=PromptTemplate)
    meta: MetaSettings = field(default_factory=MetaSettings)
    serve: AdaptSettings = field(default_factory=AdaptSettings)
    noise_scale: float = 1.0
    threads: int | None = None

    @classmethod
    def read(cls, path: Path) -> TrainingConfig:
        """Parse a YAML file. Raises `AbmllError` naming the wrong field."""
        try:
            return TypeAdapter(cls).validate_python(yaml.safe_load(path.read_text("utf-8")))
        except (ValidationError, yaml.YAMLError) as error:
            raise AbmllError(f"{path.name}: {error}") from error


@dataclass(frozen=True)
class TrainingResult:
    """The trained theta with the base it belongs to and a record of the run for the manifest."""

    prior: GlobalPosterior
    base: BaseIdentity
    record: dict[str, Any]


def run_training(
    config: TrainingConfig, folder: Path, on_visit: Callable[[dict[str, Any]], None], *, resume: bool = True
) -> TrainingResult:
    """Load the base, meta-train in `folder` (checkpoint, metrics), return the result. Resumes a run found there."""
    if config.threads:
        torch.set_num_threads(config.threads)
    collection = Collection.open(config.data.folder)
    names = collection.names(config.data.split, "train") if config.data.split else list(collection.about)
    names = [name for name in names if name not in config.data.leave_out]
    base = load_base(config.base, quantisation=config.quantisation)
    model = FewShotModel(base.model, base.tokenizer, config.adapter, template=config.template)
    for metrics in meta_train(model, collection.read(names), config.meta, folder, resume=resume):
        on_visit(metrics)
    record = {
        "config": TypeAdapter(TrainingConfig).dump_python(config, mode="json"),
        "data": [
            {
                "task": name,
                "licence": collection.about[name].get("licence", "not stated"),
                "licence_of_original_unverified": collection.about[name].get("licence_of_original_unverified", ""),
            }
            for name in names
        ],
        "commit": _commit(),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__},
        "python": sys.version.split()[0],
        "seed": config.meta.seed,
        "settings": asdict(config.meta),
    }
    return TrainingResult(trained_prior(model, folder), base.identity, record)


def _commit() -> str:
    found = subprocess.run(  # noqa: S603 - fixed arguments
        ["git", "rev-parse", "HEAD"],  # noqa: S607
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    )  # fmt: skip
    return found.stdout.strip() or "unknown"
