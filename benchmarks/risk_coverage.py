"""Draw what thresholds chosen on a few labels do: share answered against share wrong.

    python -m benchmarks.risk_coverage

The population of a task is the kept answers of the shipped model to it. Calibration sets are drawn
from it as in `benchmarks.certified_gates`, which has the numbers of many more draws. A dot is the
threshold of one draw. Its place is the true coverage and the true error above that threshold. The
left panel has the naive threshold, the right one that of the certificate.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.answers import Answers
from benchmarks.certified_gates import Records, thresholds

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
PICTURE = ROOT / "docs/images/risk-coverage.png"
METHOD, LABELS, TARGET, DELTA, DRAWS, SEED = "abmll-S16", 200, 0.1, 0.1, 20, 13
PANELS = {"naive": "Threshold tuned on the labels", "certified": "Certified gate"}
COLOURS = {"naive": "#c2410c", "certified": "#0f766e"}

Dots = dict[str, list[tuple[float, float]]]


def dots(tasks: Sequence[Records], labels: int, draws: int, seed: int = SEED) -> Dots:
    """Return for each panel the (coverage, error) of the thresholds of `draws` draws a task.

    A draw without a threshold gives no dot. One that accepts nothing has error 0.
    """
    found: Dots = {name: [] for name in PANELS}
    for number, task in enumerate(tasks):
        rng = np.random.default_rng([seed + number, labels])
        for _ in range(draws):
            served = thresholds(*task.draw(rng, labels), TARGET, DELTA)
            for name, points in found.items():
                points += [task.above(threshold) for threshold in served[name]]
    return found


def measured(rows: Sequence[dict[str, Any]], method: str) -> dict[str, Any]:
    """Return the row of the committed simulation at these labels and this target."""
    (row,) = (
        row
        for row in rows
        if (row["method"], row["n"], row["target_error"]) == (method, LABELS, TARGET)
    )  # fmt: skip
    return row


def summary(row: dict[str, Any]) -> str:
    """Say what one method did in all draws of the simulation."""
    return (
        f"{row['violations'] / row['draws']:.1%} of all draws broke the target.\n"
        f"{row['served']:.0%} found a threshold. Mean coverage {row['coverage']:.0%}."
    )


def draw(found: Dots, rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the picture of both panels to `path`."""
    figure = Figure(figsize=(9, 4), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for axis, (name, title) in zip(axes, PANELS.items(), strict=True):
        coverage, error = np.array(found[name]).reshape(-1, 2).T
        axis.axhspan(TARGET, 1, color="#fee2e2", linewidth=0)
        axis.axhline(TARGET, color="#991b1b", linewidth=1)
        axis.text(0.98, 0.95, f"above the target: over {TARGET:.0%} wrong", color="#991b1b", ha="right",
                  va="top", transform=axis.transAxes)  # fmt: skip
        axis.scatter(coverage, error, s=11, alpha=0.45, linewidth=0, color=COLOURS[name], clip_on=False)
        axis.set_title(title, fontsize=12, fontweight="bold", loc="left", pad=36)
        axis.text(0, 1.03, summary(measured(rows, name)), transform=axis.transAxes, fontsize=9)
        axis.set(xlim=(0, 1), ylim=(0, 0.55), xlabel="share of inputs answered (coverage)")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share of those answers that is wrong (risk)")
    figure.savefig(path, dpi=130)


def main() -> None:
    cells = Answers(RESULTS / f"shipped/{METHOD}.json.gz", METHOD).cells([], ["16"])
    names = sorted({cell.cell.task for cell in cells})
    tasks = [Records.of(name, [cell for cell in cells if cell.cell.task == name]) for name in names]
    rows = json.loads((RESULTS / "certified_gates_records.json").read_text("utf-8"))["rows"]
    draw(dots(tasks, LABELS, DRAWS), rows, PICTURE)


if __name__ == "__main__":
    main()
