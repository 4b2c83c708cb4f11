"""Read the answers of one method of an evaluation, for benchmarks that need no model.

    python -m benchmarks.answers --cells runs/shipped --method abmll-S16 \\
        --out benchmarks/results/shipped/abmll-S16.json.gz

The command makes one compressed file of a method's cells. `Answers` reads the file like the folder
that it comes from (`abmll evaluate --out FOLDER`).
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abmll.assurance.certificates import Floats
from lab.evaluation.cells import Cell, CellResult, Cost, pad
from lab.evaluation.metrics import ItemScores
from lab.evaluation.temperature_scaling import Rule, with_temperature

DIGITS = 6
AS_GIVEN = Rule()


@dataclass(frozen=True)
class Answers:
    """Answers of `method` in `source`, with the temperatures of `rule` on top of their own.

    `source` is the results folder of an evaluation, or a file (`.json.gz`) made of one.
    """

    source: Path
    method: str
    rule: Rule = AS_GIVEN

    @property
    def about(self) -> dict[str, Any]:
        """Return the description of the method that the evaluation wrote.

        Raises `KeyError` for a method that is not there.
        """
        file = self.source.is_file()
        text = (
            gzip.decompress(self.source.read_bytes()) if file else (self.source / "methods.json").read_bytes()
        )
        methods: dict[str, dict[str, Any]] = json.loads(text)
        return methods[self.method]

    def cells(self, tasks: Collection[str], shots: Collection[str]) -> list[CellResult]:
        """Return the finished cells of `tasks` at these k, in the order of their names.

        No `tasks` means all.
        """
        return [
            with_temperature(result, self.rule, self.method)
            for result in self._results()
            if (result.cell.task in tasks or not tasks) and result.cell.shots in shots
        ]

    def _results(self) -> Iterator[CellResult]:
        if self.source.is_file():
            yield from map(from_json, self.about["cells"])
            return
        for path in sorted((self.source / "cells" / self.method).glob("*.npz")):
            with np.load(path) as file:
                cell = Cell(**json.loads(str(file["about"]))["cell"])
            yield CellResult.load(self.source, cell)

    def to_json(self) -> dict[str, Any]:
        """Return the content of a file of these answers."""
        return {self.method: {**self.about, "cells": [to_json(result) for result in self._results()]}}


def to_json(result: CellResult) -> dict[str, Any]:
    """Return a cell as plain values, without its foreign items and rounded to `DIGITS`."""
    rows = zip(result.probabilities, result.widths, strict=True)
    return {
        "cell": asdict(result.cell),
        "classes": result.classes,
        "support_size": result.support_size,
        "cost": asdict(result.cost),
        "labels": result.labels.tolist(),
        "probabilities": [row[:width].round(DIGITS).tolist() for row, width in rows],
        "mutual_information": result.mutual_information.round(DIGITS).tolist(),
    }


def from_json(row: dict[str, Any]) -> CellResult:
    """Invert `to_json`; the cell has no foreign items."""
    probabilities, widths = pad(row["probabilities"])
    return CellResult(
        cell=Cell(**row["cell"]),
        probabilities=probabilities,
        widths=widths,
        labels=np.array(row["labels"]),
        mutual_information=np.array(row["mutual_information"]),
        foreign_probabilities=np.zeros((0, probabilities.shape[1])),
        foreign_information=np.zeros(0),
        classes=tuple(row["classes"]),
        support_size=row["support_size"],
        cost=Cost(**row["cost"]),
    )


def confidences(result: CellResult) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the probability of the answer to each item, and whether the answer is right."""
    scored = ItemScores.of(result.probabilities, result.labels)
    return scored.confidence, scored.correct.astype(bool)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=Path, required=True, help="results folder of an evaluation")
    parser.add_argument("--method", required=True, help="whose answers")
    parser.add_argument("--out", type=Path, required=True, help="the file made, `.json.gz`")
    options = parser.parse_args()
    content = Answers(options.cells, options.method).to_json()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, separators=(",", ":")) + "\n"
    options.out.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
