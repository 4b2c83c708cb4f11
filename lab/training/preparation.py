"""Load what a meta-training run needs: its tasks, the base, and a model on it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from abmll.errors import AbmllError
from abmll.meta.collection import Collection
from abmll.meta.instructions import TaskInstructions
from abmll.meta.settings import POINT_RULES
from abmll.model import FewShotModel
from abmll.posterior.config import PosteriorConfig
from lab.instructions import read_instructions
from lab.training.configuration import DataSettings, TrainingConfig
from model_store.models import Start, build_model
from model_store.pretrained.bases import LoadedBase, load_base


class Prepared(NamedTuple):
    """What a run works with: the collection, the names of its tasks, the base, and the model.

    `instructions` are those of each task, and none where the configuration names no file of them.
    """

    collection: Collection
    names: list[str]
    base: LoadedBase
    model: FewShotModel
    instructions: dict[str, TaskInstructions]


def prepare(config: TrainingConfig) -> Prepared:
    """Load what `config` names.

    The model is untrained. For an outer rule that trains points it has no noise.

    Raises `AbmllError` where `data` names both tasks and a split, and as `Collection.open` and
    `load_base`.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    collection = Collection.open(config.data.folder)
    names = _chosen(config.data, collection)
    base = load_base(
        config.base,
        quantisation=config.quantisation,
        device=config.device,
        keep_dequantised=config.keep_dequantised,
        dtype=config.dtype,
    )
    trained = PosteriorConfig(config.posterior.layout, config.posterior.noise.in_training())
    start = Start(trained, config.template, point=config.meta.outer in POINT_RULES)
    file = config.data.instructions
    return Prepared(
        collection, names, base, build_model(base, start), read_instructions(file) if file else {}
    )


def _chosen(data: DataSettings, collection: Collection) -> list[str]:
    if data.tasks and data.split:
        raise AbmllError("data has `tasks` or a `split`, not both")
    names = collection.names(data.split, "train") if data.split else data.tasks or collection.about
    return [name for name in names if name not in data.leave_out]
