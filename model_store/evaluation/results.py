"""What a results folder holds, and the tables and plots made from it.

methods.json            what each method in the folder is: another one under its name is refused
    foreign.json            whose items count as out of distribution for each task: likewise
cells/METHOD/*.npz      every item's answer, one file a cell; what is there is not run again
results.md, .json.gz    tables; `report` makes them anew from the cells alone
*.png                   reliability and risk-coverage plots
"""

from __future__ import annotations

import gzip
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import TypeAdapter

from abmll.evaluation.plots import plot_reliability, plot_risk_coverage
from abmll.evaluation.records import Cell, CellResult
from abmll.evaluation.report import Study, markdown, summarise
from abmll.evaluation.temperature import fit_temperature, with_temperature
from model_store.evaluation.config import EvaluationConfig
from model_store.evaluation.run import Evaluation
from model_store.training import commit


def report(config: EvaluationConfig, folder: Path, command: str) -> Path:
    """Write tables and plots from the cells in `folder` (those that are missing are left out); the path of `results.md`."""
    evaluation = Evaluation(config)
    results = {
        cell: CellResult.load(folder, cell) for cell in evaluation.cells() if (folder / cell.path).exists()
    }
    temperatures = _add_scaled(evaluation, results)
    methods = [entry.name for entry in config.methods]
    methods += [f"{name}+T" for name in config.temperature]
    study = Study(evaluation.splits, methods, config.baseline, evaluation.shots, config.seeds, results)
    summary = summarise(study, config.resamples)
    missing = sum(not (folder / cell.path).exists() for cell in evaluation.cells())
    run = {
        "command": command,
        "commit": commit(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": config.threads,
        },
        "left_out_without_options": evaluation.left_out,
        "missing_cells": missing,
        "temperatures": temperatures,
        "config": TypeAdapter(EvaluationConfig).dump_python(config, mode="json"),
    }
    notes = [
        f"At most {config.items} test items of a task, support seeds {', '.join(map(str, config.seeds))}, "
        "drawn uniformly unless k says otherwise. No theta was trained on a test task or on one that shares its sentences.",
        "ECE-15 is that of each cell; next to it, what a perfectly calibrated model with these confidences would have.",
    ]
    if missing:
        notes.append(f"**{missing} cells have not run**; a task counts only where all its seeds have.")
    about = {"title": f"Evaluation {config.id}", "notes": notes, "run": run}
    text = json.dumps({**summary, "run": run}, indent=1) + "\n"
    (folder / "results.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    (folder / "results.md").write_text(markdown(summary, about), "utf-8")
    for section in summary["sections"]:
        tasks = study.splits[section["split"]]
        shown = {
            m: [r for t in tasks for r in study.cells(m, t, section["shots"])] for m in section["methods"]
        }
        if shown:
            stem = f"{section['split']}-k{section['shots']}".replace("/", "-").replace(" ", "-")
            plot_reliability(shown, folder / f"reliability-{stem}.png")
            plot_risk_coverage(shown, folder / f"risk-coverage-{stem}.png")
    return folder / "results.md"


def _add_scaled(evaluation: Evaluation, results: dict[Cell, CellResult]) -> dict[str, dict[str, float]]:
    """Add the temperature-scaled twin of every cell of the methods that ask for it; what was fitted, by method."""
    found: dict[str, dict[str, float]] = {}
    for name in evaluation.config.temperature:
        own = [result for cell, result in results.items() if cell.method == name]
        validation = [result for result in own if result.cell.task in evaluation.validation]
        if not validation:
            continue
        rule = fit_temperature(validation)
        found[name] = asdict(rule)
        for result in own:
            scaled = with_temperature(result, rule, f"{name}+T")
            results[scaled.cell] = scaled
    return found
