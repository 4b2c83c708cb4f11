"""A cell (method, task, k, seed), its episode, and the answers to every item of it.

Answers are kept item by item, so that every table and plot can be made again without a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abmll.text.tasks import Example, Query

Floats = NDArray[np.float64]


@dataclass(frozen=True, order=True)
class Cell:
    """One unit of work.

    `shots` is k as the configuration has it: `16`, `16 balanced` or `16 per class`.
    """

    method: str
    task: str
    shots: str
    seed: int

    @property
    def path(self) -> Path:
        """Where its result lies in the results folder."""
        return Path("cells", self.method, f"{self.task}-k{self.shots.replace(' ', '-')}-seed{self.seed}.npz")


@dataclass(frozen=True)
class Episode:
    """A cell's data.

    `support` is learnt from. `labels` are the indices of the right options of `queries`. `foreign`
    are inputs of another task under this task's options.
    """

    support: tuple[Example, ...]
    queries: tuple[Query, ...]
    labels: tuple[int, ...]
    foreign: tuple[Query, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A distribution over a query's options.

    `mutual_information` in nats is nan where there is only one model.
    """

    probabilities: tuple[float, ...]
    mutual_information: float = float("nan")


@dataclass(frozen=True)
class Effort:
    """What a method did in a cell.

    `tokens` are those of forward passes, each sample and each gradient step counted.
    """

    gradient_steps: int = 0
    tokens: int = 0
    adapt_seconds: float = 0.0

    def __add__(self, other: Effort) -> Effort:
        return Effort(
            self.gradient_steps + other.gradient_steps,
            self.tokens + other.tokens,
            self.adapt_seconds + other.adapt_seconds,
        )


@dataclass(frozen=True)
class Cost:
    """What a cell cost: an `Effort`, the seconds of the whole cell, and the peak of memory.

    `peak_memory_bytes` is the most that the process held while the cell ran.
    """

    gradient_steps: int
    tokens: int
    adapt_seconds: float
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class CellResult:
    """A cell's items.

    `probabilities` [n, widest] has zeros beyond the options of an item; `widths` [n] says how many
    options each item has. `labels` [n] are the indices of the right options. `mutual_information`
    [n] is in nats, nan where there is none.

    `foreign_probabilities` [m, C] and `foreign_information` [m] are the same for another task's
    items. `classes` are the task's label words where they are the same for every item; it is empty
    for multiple choice.
    """

    cell: Cell
    probabilities: Floats
    widths: NDArray[np.int64]
    labels: NDArray[np.int64]
    mutual_information: Floats
    foreign_probabilities: Floats
    foreign_information: Floats
    classes: tuple[str, ...]
    support_size: int
    cost: Cost

    def save(self, folder: Path) -> None:
        """Write the result under `folder`, whole or not at all."""
        path = folder / self.cell.path
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        about = {
            "cell": asdict(self.cell),
            "classes": self.classes,
            "support_size": self.support_size,
            "cost": asdict(self.cost),
        }
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        with partial.open("wb") as file:
            np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)
        partial.replace(path)

    @classmethod
    def load(cls, folder: Path, cell: Cell) -> CellResult:
        """Read what `save` wrote. Raises `FileNotFoundError` for a cell that has not run."""
        with np.load(folder / cell.path) as file:
            about: Mapping[str, Any] = json.loads(str(file["about"]))
            arrays = {name: file[name] for name in _ARRAYS}
        return cls(
            cell=Cell(**about["cell"]),
            classes=tuple(about["classes"]),
            support_size=about["support_size"],
            cost=Cost(**about["cost"]),
            **arrays,
        )


_ARRAYS = (
    "probabilities",
    "widths",
    "labels",
    "mutual_information",
    "foreign_probabilities",
    "foreign_information",
)


def pad(distributions: Sequence[Sequence[float]]) -> tuple[Floats, NDArray[np.int64]]:
    """Return distributions of different lengths as one array, and their lengths.

    The array is filled up with zeros.
    """
    widths = np.array([len(row) for row in distributions], dtype=np.int64)
    padded = np.zeros((len(distributions), int(widths.max(initial=0))))
    for row, values in zip(padded, distributions, strict=True):
        row[: len(values)] = values
    return padded, widths
