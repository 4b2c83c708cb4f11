"""Run an evaluation: the cells that a results folder lacks, in one process or in several."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from abmll.errors import AbmllError
from lab.evaluation.cell_runner import CellRunner
from lab.evaluation.cells import Cell
from lab.evaluation.configuration import EvaluationConfig
from lab.evaluation.study import Study


def run_evaluation(
    config: EvaluationConfig, folder: Path, on_cell: Callable[[int, int, Cell], None], *, processes: int = 1
) -> None:
    """Run the cells that `folder` lacks, in this process or in `processes` others.

    `on_cell` gets how many cells are done, how many there are, and the latest one. Raises
    `AbmllError` where the folder holds another method under one of the names or other foreign
    items, and as `Study` and `CellRunner.run`.
    """
    study = Study(config)
    folder.mkdir(parents=True, exist_ok=True)
    methods = {entry.name: study.describe(entry) for entry in config.methods}
    _claim(folder / "methods.json", methods, "other methods of the names")
    _claim(folder / "foreign.json", study.foreign, "other out-of-distribution tasks for")
    cells = study.cells()
    missing = [cell for cell in cells if not (folder / cell.path).exists()]
    done = len(cells) - len(missing)
    for number, cell in enumerate(_run_all(study, folder, missing, processes), start=done + 1):
        on_cell(number, len(cells), cell)


def _run_all(study: Study, folder: Path, cells: Sequence[Cell], processes: int) -> Iterable[Cell]:
    if processes == 1 or len(cells) < 2:
        runner = CellRunner(study)
        for cell in cells:
            runner.run(cell).save(folder)
            yield cell
        return
    with ProcessPoolExecutor(
        min(processes, len(cells)),
        mp_context=multiprocessing.get_context("spawn"),  # torch's threads do not survive a fork
        initializer=_Process.start,
        initargs=(study.config, folder),
    ) as pool:
        try:
            for future in as_completed([pool.submit(_Process.run, cell) for cell in cells]):
                yield future.result()
        except BaseException:  # an interrupt too: only the cells that are running are waited for
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Process:
    """A process's own runner: set when the process starts, used by its one thread."""

    runner: CellRunner
    folder: Path

    @classmethod
    def start(cls, config: EvaluationConfig, folder: Path) -> None:
        cls.runner, cls.folder = CellRunner(Study(config)), folder

    @classmethod
    def run(cls, cell: Cell) -> Cell:
        cls.runner.run(cell).save(cls.folder)
        return cell


def _claim(path: Path, values: dict[str, Any], what: str) -> None:
    """Record `values` by name.

    Raises `AbmllError` where another value is recorded under one of the names.
    """
    values = json.loads(json.dumps(values))
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    changed = [name for name in values if name in known and known[name] != values[name]]
    if changed:
        raise AbmllError(f"{path.parent.name} holds {what} {', '.join(changed)}: choose another folder")
    path.write_text(json.dumps({**known, **values}, indent=1) + "\n", "utf-8")
