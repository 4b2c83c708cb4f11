"""Answers that an evaluation has kept (`abmll evaluate --out FOLDER`), read again for what needs no model."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abmll.evaluation.metrics import Scored
from abmll.evaluation.records import Cell, CellResult, Floats
from abmll.evaluation.temperature import with_temperature
from abmll.uncertainty import Predictive, Uncertainty


@dataclass(frozen=True)
class Kept:
    """The answers of `method` in `folder`, at a `temperature` relative to the one that they were given at."""

    folder: Path
    method: str
    temperature: float = 1.0

    @property
    def about(self) -> dict[str, Any]:
        """What the method is, as the evaluation wrote it."""
        methods: dict[str, dict[str, Any]] = json.loads((self.folder / "methods.json").read_text())
        return methods[self.method]

    def cells(self, tasks: Collection[str], shots: Collection[str]) -> list[CellResult]:
        """The finished cells of `tasks` (all, where there are none named) at these k, in the order of their names."""
        found = []
        for path in sorted((self.folder / "cells" / self.method).glob("*.npz")):
            with np.load(path) as file:
                cell = Cell(**json.loads(str(file["about"]))["cell"])
            if (cell.task in tasks or not tasks) and cell.shots in shots:
                result = CellResult.load(self.folder, cell)
                found.append(with_temperature(result, self.temperature, cell.method))
        return found


def confidences(result: CellResult) -> tuple[Floats, NDArray[np.bool_]]:
    """The top probability of each item, and whether the answer was right."""
    scored = Scored.of(result.probabilities, result.labels)
    return scored.confidence, scored.correct.astype(bool)


def predictives(result: CellResult, samples: int) -> list[Predictive]:
    """The answers as a server has them; what was not kept (stds, the parts of the entropy) is nan."""
    nan = float("nan")
    return [
        Predictive(
            options=tuple(map(str, range(width))),
            probabilities=tuple(row[:width].tolist()),
            stds=(nan,) * int(width),
            uncertainty=Uncertainty(nan, nan, float(information), nan),
            samples=samples,
        )
        for row, width, information in zip(
            result.probabilities, result.widths, result.mutual_information, strict=True
        )
    ]
