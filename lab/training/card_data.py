"""What the manifest of a posterior, and so its model card, says of its training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from abmll.meta.collection import Collection
from lab.provenance import machine
from lab.training.configuration import TrainingConfig


def training_record(
    config: TrainingConfig, collection: Collection, names: Sequence[str], commit: str
) -> dict[str, Any]:
    """Return what was run.

    That is the configuration, the tasks with their licences, the machine, the seed and the commit.
    """
    licences = ("licence", "licence_of_original_unverified")
    return {
        "config": TypeAdapter(TrainingConfig).dump_python(config, mode="json"),
        "data": [
            {"task": name, **{key: collection.about[name].get(key, "") for key in licences}} for name in names
        ],
        "machine": machine(),
        "seed": config.meta.seed,
        "commit": commit,
    }


def mean_losses(folder: Path) -> dict[str, Any]:
    """Return the visits, the seconds and the mean inner losses of a run, from its `metrics.jsonl`.

    Losses are in nats per example: those of the first and the last inner step, over the first and
    the last tenth of the visits to one task. A run whose visits are all mixed has those of these.
    """
    visits = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    shown = [visit for visit in visits if not visit.get("mixed")] or visits
    tenth = max(1, len(shown) // 10)
    parts = {"first_tenth": shown[:tenth], "last_tenth": shown[-tenth:]}
    return {
        "visits": len(visits),
        "seconds": round(sum(visit["seconds"] for visit in visits)),
        "inner_loss_before": {name: _mean([v["losses"][0] for v in part]) for name, part in parts.items()},
        "inner_loss_after": {name: _mean([v["losses"][-1] for v in part]) for name, part in parts.items()},
    }


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 4)
