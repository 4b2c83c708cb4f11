"""Cells of the comparison: what one arm answered from some cases, stored so that a run can go on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from benchmarks.decisions.arms import Answer, Answers, Cost
from benchmarks.decisions.collections import Decisions
from benchmarks.decisions.measures import Measured, measure

DIGITS = 6


class Key(NamedTuple):
    """Which cell: `labelled` cases to learn from, and `tested` ones, drawn by `seed`."""

    collection: str
    arm: str
    labelled: int
    tested: int
    seed: int


@dataclass(frozen=True)
class Cell:
    """The answers of an arm to the tested cases."""

    key: Key
    answers: Answers

    def measured(self, decisions: Decisions) -> dict[str, Measured]:
        """Return how good the answers are, by question."""
        _, tested = decisions.split(self.key.labelled, self.key.tested, self.key.seed)
        return {
            question.name: measure(
                question,
                [case.answers[question.name] for case in tested],
                [row[number] for row in self.answers.rows],
            )
            for number, question in enumerate(decisions.questions)
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with numbers of `DIGITS` digits."""
        rows = [[_rounded(answer) for answer in row] for row in self.answers.rows]
        costs = {"learn": asdict(self.answers.learn), "answer": asdict(self.answers.answer)}
        return {"key": list(self.key), **costs, "rows": rows}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read what `to_json` returned."""
        rows = [[Answer(tuple(first), *rest) for first, *rest in row] for row in values["rows"]]
        return cls(Key(*values["key"]), Answers(rows, Cost(**values["learn"]), Cost(**values["answer"])))


def _rounded(answer: Answer) -> list[Any]:
    probabilities, *rest = astuple(answer)
    return [
        [round(value, DIGITS) for value in probabilities],
        *(None if value is None else round(value, DIGITS) for value in rest),
    ]


class CellFile:
    """The cells of a run, one a line. A line that a crash cut off is as if it was not there."""

    def __init__(self, path: Path) -> None:
        self._path, self.cells = path, dict[Key, Cell]()
        for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
            try:
                cell = Cell.from_json(json.loads(line))
            except ValueError:
                continue
            self.cells[cell.key] = cell

    def add(self, cell: Cell) -> None:
        """Append a cell."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(cell.to_json()) + "\n")
        self.cells[cell.key] = cell

    def of(self, keys: Iterable[Key]) -> list[Cell]:
        """Return those of the cells that are there."""
        return [self.cells[key] for key in keys if key in self.cells]
