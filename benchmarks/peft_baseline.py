"""Compare our time with that of PEFT LoRA: AdamW steps on the support, then S stochastic passes.

    python -m benchmarks.peft_baseline --data ../shared/data

Both sides have the same dense base weights, dtype, threads, prompts, adapted modules, rank, steps,
batch size, learning rate and number of samples. First the outputs at the same weights (theta's
means) are compared. Then PEFT starts from scratch, as a user would. The baseline has two forms:
`peft` takes all logits of `model(**batch)`, as tutorials do; `peft, needed logits` computes them at
the options' tokens only. Its stochastic pass is Monte Carlo dropout (p = .05) in the LoRA layers.
It costs less than drawing Gaussian weights, and PEFT offers it in one line. The shipped posterior
was not trained on these tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from abmll.adaptation.run import Adaptation
from benchmarks import common
from benchmarks.common import Cell, Served
from benchmarks.reference_lora import PeftLora

BASELINES = {"peft": "peft", "needed": "peft, needed logits"}
NAMES = {"ours": "ours", **BASELINES}


def main() -> None:
    parser = common.arguments(__doc__, data=True)
    parser.add_argument("--tasks", nargs="+", default=["ag_news", "tweet_eval-hate"])
    parser.add_argument(
        "--baselines", nargs="+", choices=BASELINES, default=list(BASELINES), help="which of the two forms"
    )
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--steps", type=int, default=None, help="by default the posterior's")
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument(
        "--rows-per-pass", type=int, default=32, help="(input, option) rows of a baseline batch"
    )
    options = parser.parse_args()
    if options.quick:
        options.shots, options.items, options.samples, options.repeats, options.steps = 4, 2, 1, 1, 1
    served = common.load_served(options.posterior, options.threads, total_scores=True)
    options.steps = options.steps or served.model.defaults.steps
    base = common.load_dense(served.manifest)
    prior, layout = served.model.prior, served.model.prior.config.layout
    lora = PeftLora(
        base, prior, needed_only=False, dropout=options.dropout, rows_per_pass=options.rows_per_pass
    )
    # Both forms share one adapter and its weights, so only one model is in memory.
    both = {"peft": lora, "needed": lora.scoring_needed_only()}
    peft = {name: both[name] for name in options.baselines}
    rows, detail = [], {}
    for name in options.tasks:
        cell = common.read_cell(options.data, name, options.shots, options.items, options.seed)
        found = measure(served, peft, cell, options)
        detail[name] = found
        rows += report_rows(name, found)
    about = (
        f"{options.shots} support examples, {options.items} inputs, S = {options.samples}, "
        f"adaptation as the posterior says but for {options.steps} steps: `{served.manifest.adapt}`. "
        f"Baseline: PEFT LoRA, rank {layout.rank}, alpha {layout.alpha:g}, on {', '.join(layout.modules)} "
        f"of layers {layout.first_layer} and up; one row for each (input, option), "
        f"{options.rows_per_pass} rows a batch, similar lengths together, `inference_mode`; a sample is a pass with dropout "
        f"p = {options.dropout} in the LoRA layers. PEFT starts from scratch. `x` is the time over ours."
    )
    agreed = [found["agreement"] for found in detail.values()]
    head = ["task", "", "adapt s", "x", "predict s", "x", "end to end s", "x"]
    quality = ["task", "", "accuracy", "NLL"]
    tables = [
        common.table(head, rows),
        "Quality on the inputs (one support draw: differences of a few percent mean nothing):",
        common.table(quality, [[name, *row] for name, found in detail.items() for row in found["quality"]]),
    ]
    title = "Against PEFT LoRA with dropout samples"
    common.write_results("peft_baseline", title, [about, *agreed], tables, detail, options, served.dtype)


def measure(served: Served, peft: dict[str, PeftLora], cell: Cell, options: Any) -> dict[str, Any]:
    """Compare outputs, then measure times, then quality, on one task."""
    model, settings, seed = served.model, replace(served.model.defaults, steps=options.steps), options.seed
    support = model.encode_support(cell.support)
    prompts, labels = [example.prompt for example in support], [example.label for example in support]
    queries = [model.encoder.encode(query) for query in cell.queries]
    ours_mean = common.probabilities(model.predict(common.untempered(model.prior), cell.queries, samples=0))
    differences = []
    for arm in peft.values():
        arm.start(seed, copy_means=True)
        differences.append(common.largest_difference(ours_mean, arm.predict(queries, samples=0, seed=seed)))
    allowed = common.tolerance(served.dtype)
    agreement = common.check_close(
        f"{cell.name}, theta's means without noise, ours against PEFT", max(differences), allowed
    )
    state: dict[str, Any] = {}

    def fit(name: str) -> None:
        peft[name].start(seed, copy_means=False)
        peft[name].fit(
            prompts,
            labels,
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            seed=seed,
        )

    def adapt_ours() -> None:
        state["ours"] = model.adapt(cell.support, settings, seed=seed)

    def predict_ours() -> None:
        adaptation: Adaptation = state["ours"]
        found = model.predict(adaptation.posterior, cell.queries, samples=options.samples, seed=seed)
        state["ours p"] = common.probabilities(found)

    def predict_peft(name: str) -> None:
        state[f"{name} p"] = peft[name].predict(queries, samples=options.samples, seed=seed)

    adapting: dict[str, Callable[[], object]] = {
        "ours": adapt_ours,
        **{name: partial(fit, name) for name in peft},
    }
    predicting: dict[str, Callable[[], object]] = {
        "ours": predict_ours,
        **{name: partial(predict_peft, name) for name in peft},
    }
    adapt_seconds = common.interleaved(adapting, options.repeats)
    predict_seconds = common.interleaved(predicting, options.repeats)
    qualities = [[NAMES[arm], *score(state[f"{arm} p"], cell.labels)] for arm in predicting]
    return {
        "agreement": agreement,
        "adapt_seconds": adapt_seconds,
        "predict_seconds": predict_seconds,
        "quality": qualities,
    }


def report_rows(task: str, found: dict[str, Any]) -> list[list[Any]]:
    """Return a row for each arm: its seconds, and its time over ours."""
    adapt, predict = common.medians(found["adapt_seconds"]), common.medians(found["predict_seconds"])
    ours = adapt["ours"], predict["ours"]
    return [
        [
            task, NAMES[arm], adapt[arm], adapt[arm] / ours[0], predict[arm], predict[arm] / ours[1],
            adapt[arm] + predict[arm], (adapt[arm] + predict[arm]) / sum(ours),
        ]
        for arm in adapt
    ]  # fmt: skip


def score(probabilities: Sequence[Sequence[float]], labels: Sequence[int]) -> tuple[float, float]:
    """Return the accuracy, and the mean negative log-likelihood in nats."""
    p, y = np.array(probabilities), np.array(labels)
    return float((p.argmax(1) == y).mean()), float(-np.log(p[np.arange(len(y)), y]).mean())


if __name__ == "__main__":
    main()
