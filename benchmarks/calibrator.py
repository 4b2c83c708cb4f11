"""The calibrator of a posterior: fitted on some tasks of an evaluation's kept answers, and tested on others.

    abmll evaluate --config configs/evaluate/all_tasks.yaml --out runs/all_tasks
    python -m benchmarks.calibrator --cells runs/all_tasks --method abmll-S8 --fit TASK... --test TASK... --out calibrator.json

Fits on `--fit`, writes the calibrator to `--out`, and writes benchmarks/results/calibrator.md: Brier score and ECE on `--test`
of the raw confidence, of that at the posterior's temperature, and of the calibrated one. `--estimates` is the work file of
`benchmarks.leave_one_out`: what is in it is told to the calibrator, in fitting and in one arm of the test, and chooses each
adapter's own temperature (`abmll/assurance/held_out.py`) in the last.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abmll.assurance.folds import Scored
from abmll.assurance.held_out import CHOICE_SPREAD, SPREAD, temperature_factor
from abmll.calibrator import Calibrator, Shown, features
from abmll.posterior.config import TemperatureRule
from abmll.posterior.posteriors import GlobalPosterior
from benchmarks.common import arguments, table, write_results
from benchmarks.kept import Kept, confidences, predictives
from benchmarks.leave_one_out import RESAMPLES, Key, held_out, resampled
from lab.evaluation.calibration import Items, confidence_falls, fit_calibrator
from lab.evaluation.metrics import expected_calibration_error
from lab.evaluation.records import CellResult, Floats
from lab.evaluation.temperature import Rule, fit_temperature, with_temperature
from model_store.posteriors import load_posterior, shipped_posteriors
from model_store.tensors import posterior_digest

RAW, TEMPERED = "raw", "at the temperature"
CALIBRATED, KNOWN = "calibrated", "calibrated, folds known"
OWN = "at its own temperature"
HeldOutAnswers = Mapping[Key, Sequence[Scored]]


def main() -> None:
    parser = arguments(__doc__, repeats=1)
    parser.add_argument("--cells", type=Path, required=True, help="results folder of an evaluation")
    parser.add_argument("--method", required=True, help="whose kept answers")
    parser.add_argument("--fit", nargs="+", required=True, help="tasks to fit on")
    parser.add_argument("--test", nargs="+", required=True, help="tasks to test on")
    parser.add_argument("--shots", nargs="+", default=["4", "8", "16", "32"])
    parser.add_argument("--estimates", type=Path, default=Path("runs/leave_one_out.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("runs/calibrator.json"), help="the calibrator made")
    options = parser.parse_args()
    shared = sorted(set(options.fit) & set(options.test))
    if shared:
        raise SystemExit(f"fitted on and tested on: {', '.join(shared)}")
    prior = load_posterior(options.posterior or shipped_posteriors()[0]).prior
    kept = Kept(options.cells, options.method)
    samples = int(kept.about["method"]["samples"])
    answers = held_out(options.estimates, posterior_digest(prior))
    served = replace(kept, rule=rule_since(prior, kept))
    calibrator = fit(
        served.cells(options.fit, options.shots), answers, samples, posterior_digest(prior), options
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(calibrator.to_json(), indent=1) + "\n")
    print(describe(calibrator), f"{calibrator.id} written to {options.out}", sep="\n")
    everything = kept.cells([*options.fit, *options.test], options.shots)
    others = cross_fitted(everything)
    scores, crossed = [], []
    for k in options.shots:
        raw, at_rule = kept.cells(options.test, [k]), served.cells(options.test, [k])
        scores += score_rows(k, raw, sure_by_arm(raw, at_rule, answers, samples, calibrator))
        raw, at_others = ([r for r in of if r.cell.shots == k] for of in (everything, others))
        arms = {RAW: raw, "at the temperature of the others": at_others}
        crossed += score_rows(k, raw, {arm: [confidences(r)[0] for r in of] for arm, of in arms.items()})
    rule = prior.config.temperature
    about = [
        f"Calibrator {calibrator.id}, fitted on {', '.join(calibrator.fitted['tasks'])}; tested on {len(options.test)} others: "
        f"{', '.join(options.test)}. Kept answers of {options.method} in {options.cells.name}, S = {samples}; the posterior's "
        f"temperature after k examples is {rule.base:g} (16 / k)^{rule.exponent:g} (with "
        f"{rule.multiple_choice or rule.base:g} for multiple choice).",
        "Brier: mean (confidence - correct)^2, the mean over tasks. ECE: 15 bins, over the items of all tasks. Differences are "
        f"to the raw confidence, with 95 % percentile intervals over {RESAMPLES} draws of tasks. `folds known`: told the "
        "adapter's own estimate where there is one; `its own temperature`: what its held-out examples choose (4 folds), and the "
        "posterior's where none could be held out.",
        f"```\n{describe(calibrator)}\n```",
    ]
    head = ["k", "confidence", "tasks", "accuracy", "mean", "Brier", "difference", "ECE-15", "difference "]
    data = {"scores": scores, "cross_fitted": crossed, "calibrator": calibrator.to_json()}
    tables = [
        table(head, scores),
        "Cross-fitted: all tasks, each at the temperature (one rule over all k) that is fitted on the others.",
        table(head, crossed),
    ]
    write_results("calibrator", "Calibrated confidence", about, tables, data, options)


def rule_since(prior: GlobalPosterior, kept: Kept) -> Rule:
    """The temperatures of `prior` relative to that of the kept answers. Raises `SystemExit` if they are of another posterior."""
    plain = replace(prior, config=replace(prior.config, temperature=TemperatureRule()))
    if kept.about["digest"] == posterior_digest(prior):
        return Rule()
    if kept.about["digest"] == posterior_digest(plain):
        rule = prior.config.temperature
        return Rule(rule.base, rule.exponent, rule.multiple_choice)
    raise SystemExit(f"{kept.method} in {kept.source.name} is of another posterior")


def key_of(result: CellResult) -> Key:
    """By what the held-out answers of its adapter are found."""
    return result.cell.task, result.cell.shots, result.cell.seed


def feature_rows(result: CellResult, answers: HeldOutAnswers, samples: int, *, folds_known: bool) -> Floats:
    """A cell's features [n, len(FEATURES)], with the folds' estimate where there is one and it is wanted."""
    found = answers.get(key_of(result)) if folds_known else None
    shown = Shown(sum(answer.correct for answer in found), len(found)) if found else None
    return np.array([features(p, result.support_size, shown) for p in predictives(result, samples)])


def fit(
    results: Sequence[CellResult],
    answers: HeldOutAnswers,
    samples: int,
    digest: str,
    options: argparse.Namespace,
) -> Calibrator:
    """The calibrator of these cells, for the posterior with this digest."""
    items = Items(
        np.concatenate([feature_rows(r, answers, samples, folds_known=True) for r in results]),
        np.concatenate([confidences(r)[1] for r in results]).astype(np.int64),
        np.concatenate([[r.cell.task] * len(r.labels) for r in results]),
    )
    seeds = sorted({r.cell.seed for r in results})
    return fit_calibrator(
        items, digest, samples, {"shots": options.shots, "seeds": seeds, "samples": samples}
    )


def describe(calibrator: Calibrator) -> str:
    """Coefficients, and whether confidence ever falls where the top probability rises."""
    lines = [f"{name:>20} {value:+.4f}" for name, value in calibrator.coefficients.items()]
    falls = [str(n) for n in (2, 3, 4, 8, 16) if confidence_falls(calibrator, n)]
    sane = f"falls somewhere with {', '.join(falls)} options" if falls else "never falls"
    lines += [
        f"{'intercept':>20} {calibrator.intercept:+.4f}",
        f"As the top probability rises, confidence {sane}.",
        "NLL of left-out tasks: {left_out_task_nll:.4f}, raw {raw_nll:.4f}.".format(**calibrator.fitted),
    ]
    return "\n".join(lines)


def sure_by_arm(
    raw: Sequence[CellResult],
    served: Sequence[CellResult],
    answers: HeldOutAnswers,
    samples: int,
    calibrator: Calibrator,
) -> dict[str, list[Floats]]:
    """Confidences of each arm, cell by cell; `served` are the cells of `raw` at the temperature of the posterior."""

    def calibrated(result: CellResult, *, folds_known: bool) -> Floats:
        rows = feature_rows(result, answers, samples, folds_known=folds_known)
        return np.array([calibrator.evaluate(tuple(row)) for row in rows])

    def at_own(result: CellResult) -> Floats:
        spread = SPREAD if result.classes else CHOICE_SPREAD
        rule = Rule(temperature_factor(answers.get(key_of(result), ()), spread))
        return confidences(with_temperature(result, rule, result.cell.method))[0]

    return {
        RAW: [confidences(r)[0] for r in raw],
        TEMPERED: [confidences(r)[0] for r in served],
        CALIBRATED: [calibrated(r, folds_known=False) for r in served],
        KNOWN: [calibrated(r, folds_known=True) for r in served],
        OWN: [at_own(r) for r in served],
    }


def cross_fitted(raw: Sequence[CellResult]) -> list[CellResult]:
    """The cells at the temperature that is fitted, over all k, on the cells of all other tasks."""
    tasks = {r.cell.task for r in raw}
    rules = {task: fit_temperature([r for r in raw if r.cell.task != task]) for task in tasks}
    return [with_temperature(r, rules[r.cell.task], r.cell.method) for r in raw]


def score_rows(
    shots: str, raw: Sequence[CellResult], by_arm: Mapping[str, Sequence[Floats]]
) -> list[list[Any]]:
    """One table row an arm, from its confidences in each of the cells `raw`."""
    tasks = sorted({result.cell.task for result in raw})
    cells = {task: [i for i, r in enumerate(raw) if r.cell.task == task] for task in tasks}
    correct = [np.concatenate([confidences(raw[i])[1] for i in cells[t]]).astype(float) for t in tasks]
    sure = {arm: [np.concatenate([of[i] for i in cells[t]]) for t in tasks] for arm, of in by_arm.items()}

    def brier(arm: str, chosen: NDArray[np.int64]) -> float:
        return float(np.mean([((sure[arm][i] - correct[i]) ** 2).mean() for i in chosen]))

    def ece(arm: str, chosen: NDArray[np.int64]) -> float:
        return expected_calibration_error(
            np.concatenate([sure[arm][i] for i in chosen]), np.concatenate([correct[i] for i in chosen])
        )

    everyone = np.arange(len(tasks))
    found = []
    for arm in by_arm:
        means = [np.mean([values.mean() for values in of]) for of in (correct, sure[arm])]
        row: list[Any] = [shots, arm, len(tasks), *map(float, means)]
        for metric in (brier, ece):
            row += [metric(arm, everyone), "" if arm == RAW else difference(metric, arm, everyone)]
        found.append(row)
    return found


def difference(
    metric: Callable[[str, NDArray[np.int64]], float], arm: str, everyone: NDArray[np.int64]
) -> str:
    """To the raw confidence, with its interval over draws of tasks."""

    def of(chosen: NDArray[np.int64]) -> float:
        return metric(arm, chosen) - metric(RAW, chosen)

    low, high = resampled(of, len(everyone))
    return f"{of(everyone):+.4f} [{low:+.4f}, {high:+.4f}]"


if __name__ == "__main__":
    main()
