"""Tables from kept cells: `results.json.gz` for programs and `results.md` for people. No model is needed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from abmll.evaluation.metrics import HIGHER_IS_BETTER, METRICS, evaluate
from abmll.evaluation.records import Cell, CellResult, Cost
from abmll.evaluation.statistics import LEVEL, Estimate, PairedItems, paired_differences

TITLES = {
    "accuracy": "accuracy", "macro_f1": "macro-F1", "nll": "NLL", "brier": "Brier", "ece15": "ECE-15",
    "ece15_if_calibrated": "(ECE-15 if calibrated)", "smooth_ece": "smooth ECE",
    "mean_abs_calibration_gap": "mean abs. gap", "aurc": "AURC", "coverage_at_5": "coverage at 5 % error",
    "coverage_at_10": "coverage at 10 %", "ood_auroc_information": "OOD AUROC (MI)", "ood_auroc_entropy": "OOD AUROC (entropy)",
}  # fmt: skip
# Set-level calibration of a cell depends on how many items it has; it has no better or worse of its own.
COMPARED = tuple(metric for metric in METRICS if metric != "ece15_if_calibrated")
BY_TASK = ("accuracy", "nll", "ece15")


@dataclass(frozen=True)
class Study:
    """What was run: the tasks of each split, the methods (in the order of the tables), k, seeds, and every cell's result."""

    splits: Mapping[str, Sequence[str]]
    methods: Sequence[str]
    baseline: str
    shots: Sequence[str]
    seeds: Sequence[int]
    results: Mapping[Cell, CellResult]

    def cells(self, method: str, task: str, shots: str) -> list[CellResult]:
        """The task's results, seed by seed; empty unless every seed has one."""
        found = [self.results.get(Cell(method, task, shots, seed)) for seed in self.seeds]
        return [result for result in found if result is not None] if all(found) else []


def summarise(study: Study, resamples: int) -> dict[str, Any]:
    """Everything the tables say, as plain values; nan becomes None."""
    measured = {cell: evaluate(result) for cell, result in study.results.items()}
    sections = []
    for split, tasks in study.splits.items():
        for shots in study.shots:
            values = {
                method: {
                    task: _mean([measured[result.cell] for result in cells])
                    for task in tasks
                    if (cells := study.cells(method, task, shots))
                }
                for method in study.methods
            }
            sections.append(
                {
                    "split": split,
                    "shots": shots,
                    "methods": {
                        method: {
                            "metrics": {
                                metric: asdict(Estimate.of([row[metric] for row in values[method].values()]))
                                for metric in METRICS
                            },
                            "cost": _cost(study, method, list(values[method]), shots),
                            "difference": _difference(study, values, method, shots, resamples),
                            "tasks": values[method],
                        }
                        for method in study.methods
                        if values[method]
                    },
                }
            )
    plain: dict[str, Any] = _without_nan({"baseline": study.baseline, "sections": sections})
    return plain


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {metric: float(np.mean([row[metric] for row in rows])) for metric in METRICS}


def _cost(study: Study, method: str, tasks: Sequence[str], shots: str) -> dict[str, float]:
    """Means over cells; the peak is the largest."""
    costs = [result.cost for task in tasks for result in study.cells(method, task, shots)]
    mean = {
        field.name: float(np.mean([getattr(cost, field.name) for cost in costs])) for field in fields(Cost)
    }
    return {**mean, "peak_memory_bytes": max(cost.peak_memory_bytes for cost in costs)} if costs else {}


def _difference(
    study: Study, values: Mapping[str, Mapping[str, Any]], method: str, shots: str, resamples: int
) -> dict[str, Any]:
    if method == study.baseline or not values[study.baseline]:
        return {}
    items = [
        PairedItems.of(study.cells(method, task, shots), study.cells(study.baseline, task, shots))
        for task in values[method]
        if task in values[study.baseline]
    ]
    found = paired_differences(values[method], values[study.baseline], items, COMPARED, resamples)
    return {metric: asdict(difference) for metric, difference in found.items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def markdown(summary: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """The tables of `summarise`, under what `about` says of the run (title, notes, and anything else as JSON)."""
    parts = [f"# {about['title']}", *about["notes"]]
    for section in summary["sections"]:
        methods = section["methods"]
        parts.append(f"## {section['split']}, k = {section['shots']}")
        parts.append(_table(["method", "tasks", *TITLES.values()], [
            [name, str(len(m["tasks"])), *(_estimate(m["metrics"][metric]) for metric in METRICS)] for name, m in methods.items()
        ]))  # fmt: skip
        parts.append(
            "Mean ± standard error over the tasks that a method has cells of, of the mean over support seeds."
        )
        compared = {name: m for name, m in methods.items() if m["difference"]}
        if compared:
            parts.append(f"### Against {summary['baseline']}")
            parts.append(_table(["method", *(TITLES[metric] for metric in COMPARED)], [
                [name, *(_interval(metric, m["difference"][metric]) for metric in COMPARED)] for name, m in compared.items()
            ]))  # fmt: skip
            parts.append(
                f"Paired differences by task, with {LEVEL:.0%} bootstrap intervals: over tasks and items for accuracy, NLL, "
                "Brier, the mean absolute gap and ECE-15, over tasks for the others. Bold: better, by the "
                "whole interval."
            )
        parts.append("### Cost of a cell")
        parts.append(_table(["method", "gradient steps", "tokens", "adapt s", "total s", "peak memory MB"], [
            [name, *(_number(m["cost"][key], digits) for key, digits in _COSTS), _number(m["cost"]["peak_memory_bytes"] / 1e6, 0)]
            for name, m in methods.items()
        ]))  # fmt: skip
        parts.append("### By task")
        tasks = list(dict.fromkeys(task for m in methods.values() for task in m["tasks"]))
        for metric in BY_TASK:
            rows = [
                [task, *(_number(m["tasks"].get(task, {}).get(metric)) for m in methods.values())]
                for task in tasks
            ]
            parts += [_table([TITLES[metric], *methods], rows)]
    parts.append("## The run")
    parts.append("```json\n" + json.dumps(about["run"], indent=1) + "\n```")
    return "\n\n".join(parts) + "\n"


_COSTS = (("gradient_steps", 0), ("tokens", 0), ("adapt_seconds", 2), ("seconds", 2))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        + ["| " + " | ".join(row) + " |" for row in rows]
    )


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _estimate(values: Mapping[str, float | None]) -> str:
    return (
        "-" if values["mean"] is None else f"{_number(values['mean'])} ± {_number(values['standard_error'])}"
    )


def _interval(metric: str, difference: Mapping[str, Any]) -> str:
    mean, low, high = difference["estimate"]["mean"], difference["low"], difference["high"]
    if mean is None:
        return "-"
    if low is None:
        return f"{mean:+.3f}"
    text = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
    better = low > 0 if metric in HIGHER_IS_BETTER else high < 0
    return f"**{text}**" if better else text
