"""How much noise to serve with: the scale of the posterior's standard deviations, on validation tasks.

    python -m benchmarks.noise_scale --data ../shared/data --posterior runs/class_to_class/posterior

One adaptation a task and seed serves all scales, since the scale enters sampling only. 0 is the mean alone.
"""

from __future__ import annotations

from benchmarks import common, validation


def main() -> None:
    parser = validation.arguments(__doc__)
    parser.add_argument("--scales", nargs="+", type=float, default=[0, 1, 2, 4])
    parser.add_argument("--samples", type=int, default=8)
    options = parser.parse_args()
    served = common.load_served(options.posterior, options.threads)
    rows: dict[float, list[dict[str, float]]] = {scale: [] for scale in options.scales}
    for name, seed, data in validation.episodes(served, options):
        phi = served.model.adapt(data.support, seed=seed, truncate=True).posterior
        for scale, found in rows.items():
            scaled = phi.with_noise_scale(scale) if scale else phi
            samples = options.samples if scale else 0
            found.append(validation.measure(served.model, scaled, data, samples=samples, seed=seed))
        print(name, seed, {scale: round(found[-1]["nll"], 3) for scale, found in rows.items()}, flush=True)
    about = f"S = {options.samples}; c = {served.model.prior.config.spread_offset}."
    table = common.table(
        ["scale", *validation.SHOWN], [[f"{s:g}", *validation.means(r)] for s, r in rows.items()]
    )
    common.write_results(
        "noise_scale", "Noise scale on validation tasks", [validation.about(served, options), about], [table],
        {"rows": {f"{scale:g}": found for scale, found in rows.items()}}, options, served.dtype,
    )  # fmt: skip


if __name__ == "__main__":
    main()
