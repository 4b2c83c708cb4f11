"""Compare predictions from samples of the weights with predictions from their mean.

    python -m benchmarks.monte_carlo \\
        --sampled benchmarks/results/shipped/abmll-S16.json.gz abmll-S16 \\
        --mean benchmarks/results/shipped/abmll-S0.json.gz abmll-S0 --fit TASK...

`--sampled` and `--mean` name the results folder of an evaluation, or a file made of one
(`benchmarks.answers`), and a method there. Both are adapters of one posterior. The result is
sampled less mean, over the support seeds and test tasks of each split, with and without
temperatures. The temperature as served is one for both, and is fitted to samples. `--fit` names
validation tasks on which each of the two gets a temperature of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from abmll.meta.collection import Collection
from abmll.posterior.config import PosteriorConfig
from benchmarks import common
from benchmarks.answers import Answers
from benchmarks.leave_one_out import RESAMPLES, resampled
from lab.evaluation.cells import CellResult, Floats
from lab.evaluation.metrics import evaluate
from lab.evaluation.temperature_scaling import Rule, fit_temperature, with_temperature
from model_store.posteriors import load_posterior, shipped_posteriors

SHOWN = ("accuracy", "nll", "brier", "aurc")
Pair = tuple[CellResult, CellResult]
SPLITS = ("metaicl/class_to_class", "metaicl/hr_to_lr", "metaicl/qa_to_qa")


def main() -> None:
    parser = common.arguments(__doc__, repeats=1, data=True)
    for name in ("--sampled", "--mean"):
        parser.add_argument(name, nargs=2, metavar=("SOURCE", "METHOD"), required=True)
    parser.add_argument("--splits", nargs="+", default=SPLITS)
    parser.add_argument(
        "--fit", nargs="*", default=[], metavar="TASK", help="validation tasks among the answers"
    )
    parser.add_argument("--shots", default="16")
    options = parser.parse_args()
    config = load_posterior(options.posterior or shipped_posteriors()[0]).prior.config
    answers = [Answers(Path(source), method) for source, method in (options.sampled, options.mean)]
    sampled, mean = ({(r.cell.task, r.cell.seed): r for r in of.cells([], [options.shots])} for of in answers)
    both = sorted(sampled.keys() & mean.keys())
    fitted = [[r for (task, _), r in of.items() if task in options.fit] for of in (sampled, mean)]
    own = [fit_temperature(cells) for cells in fitted] if options.fit else []
    collection, rows = Collection.open(options.data), []
    for split in options.splits:
        names = collection.names(split, "test")
        pairs = [(sampled[key], mean[key]) for key in both if key[0] in names]
        plain = [(without_temperature(s, config), without_temperature(m, config)) for s, m in pairs]
        tasks = len({one.cell.task for one, _ in pairs})
        rows.append([split, tasks, "as served", *differences(pairs)])
        if own:
            rows.append([split, tasks, "each its own", *differences([at(pair, own) for pair in pairs])])
        rows.append([split, tasks, "none", *differences(plain)])
    seeds = ", ".join(map(str, sorted({seed for _, seed in both})))
    about = [
        f"{answers[0].method} less {answers[1].method}, k = {options.shots}, support seeds {seeds}: the mean over tasks of the "
        f"mean over seeds, with 95 % percentile intervals over {RESAMPLES} draws of tasks.",
    ]
    if own:
        about.append(
            f"Each its own: at the temperature fitted to its answers on {len(options.fit)} validation tasks."
        )
    tables = [common.table(["split", "tasks", "temperature", *SHOWN], rows)]
    common.write_results("monte_carlo", "Samples against the mean", about, tables, {"rows": rows}, options)


def at(pair: Pair, rules: Sequence[Rule]) -> Pair:
    """Return each of the pair with the temperature of its rule on top of its own."""
    one, other = (with_temperature(r, rule, r.cell.method) for r, rule in zip(pair, rules, strict=True))
    return one, other


def without_temperature(result: CellResult, config: PosteriorConfig) -> CellResult:
    """Return `result` without the temperature of `config`, the configuration of its posterior."""
    served = config.temperature.after(result.support_size, multiple_choice=not result.classes)
    return with_temperature(result, Rule(1 / served), result.cell.method)


def differences(pairs: Sequence[Pair]) -> list[str]:
    """Return each metric of `SHOWN`, first less second; pairs of one task count as one."""
    by_task: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {}
    for one, other in pairs:
        by_task.setdefault(one.cell.task, []).append((evaluate(one), evaluate(other)))
    found = []
    for metric in SHOWN:
        values = np.array(
            [fmean(one[metric] - other[metric] for one, other in scores) for scores in by_task.values()]
        )

        def mean(chosen: NDArray[np.int64], values: Floats = values) -> float:
            return float(values[chosen].mean())

        low, high = resampled(mean, len(values))
        found.append(f"{values.mean():+.4f} [{low:+.4f}, {high:+.4f}]")
    return found


if __name__ == "__main__":
    main()
