"""Measure the NLL on validation tasks by the spread of the prior of an adapter's own temperature.

    python -m benchmarks.fold_spread --answers benchmarks/results/shots/validation.json.gz \\
        --method raw-S16 --estimates runs/leave_one_out.jsonl

The spread says how far the own temperature may differ from that of the posterior. `SPREAD` and
`CHOICE_SPREAD` of `abmll/assurance/held_out.py` are chosen from the results. `--answers` is the
results folder of an evaluation, or a file made of one (`benchmarks.answers`). `--estimates` is the
work file of `benchmarks.leave_one_out` for the same tasks, k and seeds. No model is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from abmll.assurance.folds import HeldOutAnswer
from abmll.assurance.held_out import temperature_factor
from abmll.posterior.config import TemperatureRule
from abmll.posterior.posteriors import GlobalPosterior
from benchmarks.answers import Answers
from benchmarks.common import arguments, table, write_results
from benchmarks.leave_one_out import Key, held_out
from lab.evaluation.cells import CellResult
from lab.evaluation.metrics import evaluate
from lab.evaluation.temperature_scaling import Rule, with_temperature
from model_store.posteriors import load_posterior, shipped_posteriors
from model_store.tensors import posterior_digest

SPREADS = (0.1, 0.25, 0.5, 0.7, 1.0, 1.4)


def main() -> None:
    parser = arguments(__doc__, repeats=1)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--method", required=True, help="whose answers")
    parser.add_argument("--estimates", type=Path, required=True)
    parser.add_argument("--shots", nargs="+", default=["4", "16", "32"])
    options = parser.parse_args()
    prior = load_posterior(options.posterior or shipped_posteriors()[0]).prior
    estimates = held_out(options.estimates, posterior_digest(prior))
    answers = Answers(options.answers, options.method)
    served = replace(answers, rule=rule_since(prior, answers))
    cells = [cell for cell in served.cells([], options.shots) if key_of(cell) in estimates]
    rows = []
    for kind, fixed in (("fixed classes", True), ("multiple choice", False)):
        for k in options.shots:
            chosen = [cell for cell in cells if bool(cell.classes) is fixed and cell.cell.shots == k]
            if chosen:
                nlls = [mean_nll(chosen, estimates, spread) for spread in (0, *SPREADS)]
                rows.append([kind, k, len({cell.cell.task for cell in chosen}), *nlls])
    about = [
        f"NLL of {options.method} on the validation tasks of {options.answers.name}, the mean over tasks and support seeds: "
        "at the posterior's temperature, and at each adapter's own, chosen by held-out answers under a prior of that spread "
        "(4 folds, S = 8).",
    ]
    head = ["options", "k", "tasks", "the posterior's", *map(str, SPREADS)]
    write_results(
        "fold_spread",
        "The spread of an adapter's own temperature",
        about,
        [table(head, rows)],
        {"rows": rows},
        options,
    )


def rule_since(prior: GlobalPosterior, answers: Answers) -> Rule:
    """Return the temperatures of `prior` relative to those of the answers.

    Raises `SystemExit` if the answers are those of another posterior.
    """
    config, digest = prior.config, answers.about["digest"]
    if digest == posterior_digest(prior):
        return Rule()
    if digest == posterior_digest(replace(prior, config=replace(config, temperature=TemperatureRule()))):
        rule = config.temperature
        return Rule(rule.base, rule.exponent, rule.multiple_choice)
    raise SystemExit(f"{answers.method} in {answers.source.name} is of another posterior")


def key_of(result: CellResult) -> Key:
    """Return the key of the held-out answers of the same adapter."""
    return result.cell.task, result.cell.shots, result.cell.seed


def mean_nll(
    cells: Sequence[CellResult], estimates: Mapping[Key, Sequence[HeldOutAnswer]], spread: float
) -> str:
    """Return the mean NLL of the cells at the temperatures that their held-out answers choose.

    A spread of 0 leaves the temperature of the posterior.
    """
    factors = [temperature_factor(estimates[key_of(cell)], spread) if spread else 1.0 for cell in cells]
    found = [
        evaluate(with_temperature(cell, Rule(factor), cell.cell.method))["nll"]
        for cell, factor in zip(cells, factors, strict=True)
    ]
    return f"{fmean(found):.4f}"


if __name__ == "__main__":
    main()
