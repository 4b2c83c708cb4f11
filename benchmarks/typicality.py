"""Measure how often inputs have a low typicality: test inputs of the adapter's task and of another.

    python -m benchmarks.typicality --data ../shared/data

The tasks are the test tasks with fixed classes of two splits. Typicality needs the trunk alone, so
nothing is adapted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from torch import Tensor

from abmll.adaptation.support import trunk_states
from abmll.meta.collection import Collection
from abmll.model import FewShotModel
from abmll.similarity.gaussian_process import GaussianProcess
from abmll.text.tasks import Example, Task
from benchmarks.common import arguments, check_unseen, load_served, table, write_results
from lab.evaluation.metrics import auroc
from lab.evaluation.protocol import SEEDS, classes_of, episode, neighbours

SPLITS = ("metaicl/class_to_class", "metaicl/hr_to_lr")
ITEMS = 30


def main() -> None:
    parser = arguments(__doc__, data=True)
    parser.add_argument("--shots", nargs="+", type=int, default=[4, 8, 16, 32])
    parser.add_argument(
        "--at", nargs="+", type=float, default=[0.06, 0.12, 0.2], help="typicalities to alarm at"
    )
    options = parser.parse_args()
    if options.quick:
        options.shots = [8]
    seeds = SEEDS[: 1 if options.quick else None]
    served = load_served(options.posterior, options.threads)
    collection = Collection.open(options.data)
    tasks = {split: _tasks(collection, split, options.quick) for split in SPLITS}
    by_name = {task.name: task for found in tasks.values() for task in found}
    check_unseen(served.manifest, list(by_name), collection)
    states = {name: _states(served.model, task) for name, task in by_name.items()}
    gaussian_processes = {
        (name, shots, seed): fitted(served.model, episode(task, str(shots), seed, items=1).support)
        for name, task in by_name.items()
        for shots in options.shots
        for seed in seeds
    }
    rows, records = [], []
    for split, shots in product(SPLITS, options.shots):
        foreign = neighbours(tasks[split], collection.about)
        found = []
        for task, seed in product(tasks[split], seeds):
            gaussian_process = gaussian_processes[task.name, shots, seed]
            own, other = (
                np.array(list(map(gaussian_process.typicality, states[name])))
                for name in (task.name, foreign[task.name])
            )
            alarms = [float((p <= at).mean()) for at in options.at for p in (own, other)]
            found.append([auroc(-own, -other), *alarms])
            records.append(
                {"split": split, "shots": shots, "task": task.name, "seed": seed, "row": found[-1]}
            )
        rows.append(
            [split.removeprefix("metaicl/"), shots, len(tasks[split]), *np.mean(found, axis=0).tolist()]
        )
    header = ["split", "examples", "tasks", "AUROC"]
    header += [f"{whose} at {at:g}" for at in options.at for whose in ("own", "another's")]
    about = [
        f"Proportions of a task's own first {ITEMS} test inputs, and of as many of another task's, whose typicality is at most "
        f"the given level, and the AUROC of typicality between the two: means over tasks and support seeds "
        f"{', '.join(map(str, seeds))}. `{served.manifest.id}`."
    ]
    write_results(
        "typicality", "Typicality", about, [table(header, rows)], {"cells": records}, options, served.dtype
    )


def _tasks(collection: Collection, split: str, quick: bool) -> list[Task]:
    found = [task for task in collection.read(collection.names(split, "test")) if classes_of(task)]
    return found[: 2 if quick else None]


def _states(model: FewShotModel, task: Task) -> Tensor:
    """Return the features [n, d] of the task's test inputs."""
    prompts = [model.encoder.encode(item.query, truncate=True) for item in task.test[:ITEMS]]
    states = trunk_states(model.backbone, [replace(prompt, continuations=()) for prompt in prompts])
    return model.features(states, [prompt.text for prompt in prompts])


def fitted(model: FewShotModel, support: Sequence[Example]) -> GaussianProcess:
    """Return the Gaussian process of the support."""
    run = model.begin_adapt(support, replace(model.defaults, steps=0), truncate=True)
    examples, similarity = run.prepared.class_examples(model.features), model.prior.config.similarity
    assert similarity is not None
    return GaussianProcess(examples[0], similarity)


if __name__ == "__main__":
    main()
