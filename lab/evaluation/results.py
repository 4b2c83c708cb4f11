"""What a results folder holds, and the tables and plots made from it.

methods.json            what each method in the folder is: another one under its name is refused
foreign.json            whose items are out of distribution, by task: likewise
cells/METHOD/*.npz      the answers to every item, one file a cell; what is there is kept
results.md, .json.gz    tables; `write_report` makes them anew from the cells alone
*.png                   reliability and risk-coverage plots
report.html             tables and plots in one file, where asked for
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lab.evaluation.cells import Cell, CellResult
from lab.evaluation.configuration import EvaluationConfig
from lab.evaluation.html_report import plot_name
from lab.evaluation.plots import plot_reliability, plot_risk_coverage
from lab.evaluation.study import Study
from lab.evaluation.tables import StudyResults, markdown, summarise
from lab.evaluation.temperature_scaling import fit_temperature, with_temperature
from lab.provenance import commit, machine


def write_report(config: EvaluationConfig, folder: Path, command: str) -> Path:
    """Write tables and plots from the cells in `folder`, and return the path of `results.md`.

    Cells that are missing are left out and counted. `command` is what the tables say they were made
    with.
    """
    study = Study(config)
    cells = study.cells()
    results = {cell: CellResult.load(folder, cell) for cell in cells if (folder / cell.path).exists()}
    missing = len(cells) - len(results)
    temperatures = _add_scaled(study, results)
    methods = [entry.name for entry in config.methods] + [_scaled_name(name) for name in config.temperature]
    found = StudyResults(study.splits, methods, config.baseline, study.shots, config.seeds, results)
    summary = summarise(found, config.resamples)
    run = {
        "command": command,
        "commit": commit(),
        "machine": {**machine(), "threads": config.threads},
        "left_out_without_options": study.left_out,
        "missing_cells": missing,
        "temperatures": temperatures,
        "config": TypeAdapter(EvaluationConfig).dump_python(config, mode="json"),
    }
    about = {"title": f"Evaluation {config.id}", "notes": _notes(config, missing), "run": run}
    text = json.dumps({**summary, "run": run}, indent=1) + "\n"
    (folder / "results.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    (folder / "results.md").write_text(markdown(summary, about), "utf-8")
    _plot(found, summary, folder)
    return folder / "results.md"


def _notes(config: EvaluationConfig, missing: int) -> list[str]:
    notes = [
        f"At most {config.items} test items of a task, support seeds {', '.join(map(str, config.seeds))}, "
        "drawn uniformly unless k says otherwise. No theta was trained on a test task or on one that shares its sentences.",
        "ECE-15 is that of each cell; next to it, what a perfectly calibrated model with these confidences would have.",
    ]
    if missing:
        notes.append(f"**{missing} cells have not run**; a task counts only where all its seeds have.")
    return notes


def _plot(found: StudyResults, summary: Mapping[str, Any], folder: Path) -> None:
    """Draw the plots of every split and k that has results."""
    for section in summary["sections"]:
        split, shots = section["split"], section["shots"]
        results = {
            method: [result for task in found.splits[split] for result in found.cells(method, task, shots)]
            for method in section["methods"]
        }
        if results:
            plot_reliability(results, folder / plot_name("reliability", split, shots))
            plot_risk_coverage(results, folder / plot_name("risk-coverage", split, shots))


def _add_scaled(study: Study, results: dict[Cell, CellResult]) -> dict[str, dict[str, float]]:
    """Add the temperature-scaled twin of each cell of the methods that ask for it.

    Returns what was fitted, by method.
    """
    fitted: dict[str, dict[str, float]] = {}
    for name in study.config.temperature:
        own = [result for cell, result in results.items() if cell.method == name]
        validation = [result for result in own if result.cell.task in study.validation]
        if not validation:
            continue
        rule = fit_temperature(validation)
        fitted[name] = asdict(rule)
        for result in own:
            scaled = with_temperature(result, rule, _scaled_name(name))
            results[scaled.cell] = scaled
    return fitted


def _scaled_name(method: str) -> str:
    return f"{method}+T"
