"""What is chosen on validation tasks is measured here: those that a posterior's configuration keeps out of its training."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from abmll.meta.collection import Collection
from abmll.model import FewShotModel
from abmll.posterior.posteriors import TaskPosterior
from benchmarks import common
from benchmarks.common import Served
from lab.evaluation.calibration_error import expected_calibration_error
from lab.evaluation.cells import Episode, pad
from lab.evaluation.metrics import ItemScores
from lab.evaluation.protocol import episode

SHOWN = ("accuracy", "nll", "brier", "ece15", "mutual_information")


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments of every benchmark, and those of the episodes."""
    parser = common.arguments(doc, repeats=1, data=True)
    parser.add_argument("--tasks", nargs="+", help="by default those that the posterior's training left out")
    parser.add_argument("--shots", default="16", help="as in studies: `16`, `16 balanced`, `16 per class`")
    parser.add_argument("--seeds", nargs="+", type=int, default=[100, 87], help="of the supports")
    parser.add_argument("--items", type=int, default=60)
    return parser


def episodes(served: Served, options: argparse.Namespace) -> Iterator[tuple[str, int, Episode]]:
    """Every validation task with every support seed.

    Raises `SystemExit` without tasks, and `LeakError` for one that theta has seen.
    """
    if options.quick:
        options.items, options.seeds = 4, options.seeds[:1]
    names, collection = named(served, options), Collection.open(options.data)
    if not names:
        raise SystemExit("the posterior names no validation tasks: --tasks")
    common.check_unseen(served.manifest, names, collection)
    for task, seed in product(collection.read(names), options.seeds):
        yield task.name, seed, episode(task, options.shots, seed, items=options.items)


def named(served: Served, options: argparse.Namespace) -> list[str]:
    """The validation tasks: those asked for, else those of the posterior."""
    return list(options.tasks or served.manifest.training["config"]["data"]["leave_out"])


def measure(
    model: FewShotModel, phi: TaskPosterior | None, data: Episode, *, samples: int, seed: int
) -> dict[str, float]:
    """Metrics of the episode's queries under `phi` (None: theta)."""
    found = model.predict(phi, data.queries, samples=samples, seed=seed, truncate=True)
    probabilities, _ = pad([f.predictive.probabilities for f in found])
    scored = ItemScores.of(probabilities, np.array(data.labels))
    return {
        "accuracy": float(scored.correct.mean()),
        "nll": float(scored.nll.mean()),
        "brier": float(scored.brier.mean()),
        "ece15": expected_calibration_error(scored.confidence, scored.correct),
        "mutual_information": float(np.mean([f.predictive.uncertainty.mutual_information for f in found])),
    }


def means(rows: Sequence[dict[str, float]]) -> list[str]:
    """The mean of each metric over episodes, three digits."""
    return [f"{np.mean([row[name] for row in rows]):.3f}" for name in SHOWN]


def about(served: Served, options: argparse.Namespace) -> str:
    """Which episodes these were."""
    tasks = ", ".join(named(served, options))
    return (
        f"Posterior {served.manifest.id}. Validation tasks {tasks}; support seeds {options.seeds}, {options.shots} examples, "
        f"the first {options.items} test items. No test task was looked at."
    )
