"""Look at a meta-training run before training: check its data, and estimate its time."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from abmll.meta.inspection import TaskReport, inspect_task, shared_inputs, visit_tokens
from abmll.meta.settings import MetaSettings
from abmll.meta.train import meta_train
from abmll.text.tasks import Task
from lab.training.configuration import TrainingConfig
from lab.training.preparation import Prepared, prepare

# Visits that are timed, after one that warms up.
TIMED_VISITS = 3


@dataclass(frozen=True)
class DryRun:
    """What a run would meet.

    `tasks` has a report for each task. `shared` has pairs of tasks, and how many inputs both have.
    `seconds` is estimated for the whole run; it is nan where a task has no example that fits.
    """

    tasks: tuple[TaskReport, ...]
    shared: tuple[tuple[str, str, int], ...]
    tokens_per_visit: float
    seconds: float


def dry_run(config: TrainingConfig) -> DryRun:
    """Read and check all of the run's data and time a few of its visits; keep nothing.

    Raises as `prepare`.
    """
    prepared = prepare(config)
    tasks = prepared.collection.read(prepared.names)
    reports = [inspect_task(prepared.model.encoder, task, config.meta) for task in tasks]
    tokens_per_visit = visit_tokens(reports, config.meta)
    seconds = math.nan
    if all(report.fitting for report in reports):
        seconds_per_token = _seconds_per_token(prepared, tasks, reports, config.meta)
        seconds = seconds_per_token * tokens_per_visit * config.meta.visits
    return DryRun(tuple(reports), tuple(shared_inputs(tasks)), tokens_per_visit, seconds)


def _seconds_per_token(
    prepared: Prepared, tasks: Sequence[Task], reports: Sequence[TaskReport], meta: MetaSettings
) -> float:
    """Time `TIMED_VISITS` visits. The time of a visit is taken to be proportional to its tokens."""
    by_name = {report.name: report for report in reports}
    timed = replace(meta, visits=1 + TIMED_VISITS)
    with tempfile.TemporaryDirectory() as folder:
        _warm_up, *visits = meta_train(
            prepared.model, tasks, timed, Path(folder), resume=False, instructions=prepared.instructions
        )
    tokens = sum(visit_tokens([by_name[name] for name in visit["tasks"]], meta) for visit in visits)
    return float(sum(visit["seconds"] for visit in visits) / tokens)
