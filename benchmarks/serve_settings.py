"""Test-time settings of a posterior (steps, learning rate, batch size), on validation tasks. Predictions are the mean's.

    python -m benchmarks.serve_settings --data ../shared/data --posterior runs/class_to_class/posterior

A run of many steps passes through every smaller number of steps, so one adaptation a task, seed, learning rate and batch
size serves a whole column. `half way` is theta + (phi - theta) / 2.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from abmll.adaptation.settings import AdaptSettings
from abmll.posterior.posteriors import TaskPosterior
from benchmarks import common, validation


def main() -> None:
    parser = validation.arguments(__doc__)
    parser.add_argument("--steps", nargs="+", type=int, default=[0, 3, 6, 9, 12])
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[5e-4, 1e-3, 2e-3])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[8])
    options = parser.parse_args()
    served = common.load_served(options.posterior, options.threads)
    model, theta = served.model, TaskPosterior.start(served.model.prior)
    rows: dict[tuple[float, int, int, str], list[dict[str, float]]] = {}
    for name, seed, data in validation.episodes(served, options):
        for rate, size in product(options.learning_rates, options.batch_sizes):
            run = model.begin_adapt(
                data.support, AdaptSettings(max(options.steps), rate, size, 0.0), seed, truncate=True
            )
            while True:
                if (steps := len(run.losses)) in options.steps:
                    phi = run.posterior
                    half = replace(phi, values=(phi.values + theta.values) / 2)
                    for where, value in (("phi", phi), ("half way", half))[: 2 if steps else 1]:
                        found = validation.measure(model, value, data, samples=0, seed=seed)
                        rows.setdefault((rate, size, steps, where), []).append(found)
                if run.done:
                    break
                model.step([run])
            told = {(k[2], k[3]): round(found[-1]["nll"], 3) for k, found in rows.items() if k[0] == rate}
            print(name, seed, rate, size, told, flush=True)
    body = [[f"{k[0]:g}", *k[1:], *validation.means(found)] for k, found in rows.items()]
    table = common.table(["learning rate", "batch", "steps", "what", *validation.SHOWN], body)
    data_rows = [{"key": list(key), "rows": found} for key, found in rows.items()]
    common.write_results(
        "serve_settings", "Test-time settings on validation tasks", [validation.about(served, options)], [table],
        {"rows": data_rows}, options, served.dtype,
    )  # fmt: skip


if __name__ == "__main__":
    main()
