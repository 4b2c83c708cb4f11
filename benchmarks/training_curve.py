"""Plot the losses of a meta-training run from its log.

    python -m benchmarks.training_curve --log benchmarks/results/meta_training/all_tasks_v6.jsonl

The plot is a PNG beside the log. It has the losses of each visit at theta (the first inner step)
and at the last inner step, and their medians over the last 20 visits. Visits are to different
tasks, and losses differ more between tasks than over the training. Losses of free text, which are
those of a whole text, are far above the others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lab.evaluation.cells import Floats

WINDOW = 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log", type=Path, required=True, help="`metrics.jsonl` of a run")
    log = parser.parse_args().log
    plot(step_losses(log), log.with_suffix(".png"))


def step_losses(log: Path) -> Floats:
    """Return [visits, steps]: the loss of the batch of each inner step, before that step."""
    return np.array([json.loads(line)["losses"] for line in log.read_text("utf-8").splitlines()])


def trailing_medians(values: Floats, window: int = WINDOW) -> list[float]:
    """Return the median of each value and up to `window` - 1 values before it."""
    return [float(np.median(values[max(0, end - window) : end])) for end in range(1, len(values) + 1)]


def plot(losses: Floats, path: Path) -> None:
    """Write the plot to `path`."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    visits = np.arange(1, len(losses) + 1)
    for step, label in ((0, "at theta"), (-1, f"after {losses.shape[1] - 1} steps")):
        (line,) = axis.plot(visits, trailing_medians(losses[:, step]), label=label)
        axis.scatter(visits, losses[:, step], s=6, alpha=0.3, color=line.get_color())
    axis.set(xlabel="visit", ylabel="loss of an inner step's batch (nats)", yscale="log")
    axis.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
