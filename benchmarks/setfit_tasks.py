"""Compare with SetFit (Tunstall et al. 2022) on the test tasks of a split: time to learn, and quality.

    python -m venv SETFIT-VENV; SETFIT-VENV/bin/pip install setfit==1.2.0
    python -m benchmarks.setfit_tasks --data ../shared/data --threads 1 --setfit SETFIT-VENV/bin/python

SetFit has its defaults and the sentence encoder that the served model has. Both learn from the same
examples and answer the same inputs, one task after the other, on as many threads. Seconds are of
the processor. A class without an example has no probability with SetFit: it gets that of one more
example here.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abmll.meta.collection import Collection
from benchmarks import common
from benchmarks.common import Cell, Served
from benchmarks.decisions.setfit_arm import fit_and_ask
from benchmarks.leave_one_out import resampled

Floats = NDArray[np.float64]


def main() -> None:
    parser = common.arguments(__doc__, data=True, repeats=1)
    parser.add_argument("--setfit", type=Path, required=True, help="Python that has SetFit")
    parser.add_argument("--split", default="metaicl/class_to_class")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16)
    options = parser.parse_args()
    served = common.load_served(options.posterior, options.threads)
    collection = Collection.open(options.data)
    names = collection.names(options.split, "test")
    common.check_unseen(served.manifest, names, collection)
    if options.quick:
        names, options.items, options.samples = names[:1], 2, 1
    warm_up = common.read_cell(options.data, names[0], options.shots, 1, options.seed)
    served.model.adapt(warm_up.support, seed=options.seed)
    rows = []
    for name in names:
        cell = common.read_cell(options.data, name, options.shots, options.items, options.seed)
        rows.append([name, *compare(served, cell, options)])
        print(*rows[-1], flush=True)
    head = ["task", "learn s", "SetFit learn s", "x", "accuracy", "SetFit", "NLL", "SetFit"]
    about = (
        f"{len(names)} test tasks of {options.split}, {options.shots} examples, {options.items} inputs, "
        f"S = {options.samples}, one support seed. Posterior `{served.manifest.id}`. `x` is SetFit's time to "
        "learn over ours."
    )
    tables = [common.table(head, [*rows, mean_row(rows)]), differences(rows)]
    title = "Against SetFit, task by task"
    common.write_results("setfit_tasks", title, [about], tables, {"rows": rows}, options, served.dtype)


def compare(served: Served, cell: Cell, options: Any) -> list[float]:
    """Return a row of the table: seconds to learn, their ratio, accuracy and NLL, ours first."""
    began = time.process_time()
    adapted = served.model.adapt(cell.support, seed=options.seed).posterior
    ours_seconds = time.process_time() - began
    found = served.model.predict(adapted, cell.queries, samples=options.samples, seed=options.seed)
    ours = np.array(common.probabilities(found))
    names = cell.support[0].options
    support = [(example.input, example.output) for example in cell.support]
    other = fit_and_ask(options.setfit, [support], [query.input for query in cell.queries], options.seed)
    (model,) = other["supports"]
    theirs = with_unseen(np.array(model["probabilities"]), model["classes"], names, len(support))
    seconds = float(other["learn"][1])
    labels = np.array(cell.labels)
    quality = [score(p, labels) for p in (ours, theirs)]
    return [
        ours_seconds, seconds, seconds / ours_seconds,
        *(accuracy for accuracy, _ in quality), *(nll for _, nll in quality),
    ]  # fmt: skip


def with_unseen(rows: Floats, classes: list[str], names: tuple[str, ...], examples: int) -> Floats:
    """Return probabilities [inputs, options] in the order of `names` from those of `classes`."""
    unseen = [name not in classes for name in names]
    out = np.where(unseen, 1.0, 0.0) / (examples + sum(unseen)) + np.zeros((len(rows), 1))
    seen = [names.index(name) for name in classes]
    out[:, seen] = rows * examples / (examples + sum(unseen))
    return out


def score(probabilities: Floats, labels: NDArray[np.int64]) -> tuple[float, float]:
    """Return accuracy and NLL in nats."""
    right = probabilities[np.arange(len(labels)), labels]
    return float(np.mean(probabilities.argmax(1) == labels)), float(-np.log(right.clip(1e-9)).mean())


def mean_row(rows: list[list[Any]]) -> list[Any]:
    """Return the means of a table, with the ratio of the summed times."""
    means = [fmean(row[i] for row in rows) for i in range(1, len(rows[0]))]
    means[2] = means[1] / means[0]
    return ["mean", *means]


def differences(rows: list[list[Any]]) -> str:
    """Return ours less SetFit's in accuracy and NLL, with intervals over draws of tasks."""
    lines = []
    for what, place in (("accuracy", 4), ("NLL", 6)):
        values = np.array([row[place] - row[place + 1] for row in rows])
        low, high = resampled(partial(mean_of, values), len(values))
        lines.append(f"{what} {values.mean():+.3f} [{low:+.3f}, {high:+.3f}]")
    return f"Ours less SetFit's, with 95 % intervals over draws of tasks: {', '.join(lines)}."


def mean_of(values: Floats, chosen: NDArray[np.int64]) -> float:
    """Return the mean of the chosen values."""
    return float(values[chosen].mean())


if __name__ == "__main__":
    main()
