"""Run the benchmark of one fault, and write its page: `python -m benchmarks.chaos NAME`."""

from __future__ import annotations

import asyncio
import importlib
import tempfile
from pathlib import Path

from benchmarks import chaos, common
from benchmarks.chaos.setup import Setup, tiny_base

FAULTS = {
    "workers": "kill -9 of workers in the middle of adaptations and predictions",
    "wire": "delays, cuts and half-open connections between clients and the server",
    "ray_wire": "the same between the server and workers of a Ray cluster",
    "writes": "kill -9 of the server while it writes",
    "disk": "a full disk, and a store that can only be read",
    "s3": "a bucket that answers 503, is slow, or cuts connections",
    "overload": "ten times as many requests as the server can answer",
    "lifecycle": "SIGTERM and SIGHUP under load",
    "tenants": "two tenants, a revoked key, guessed ids and wrong keys",
    "sockets": "slow, huge, deep and malformed requests on every surface",
    "traffic": "mixed requests for long, with the slope of memory",
    "bulk": "a batch with kill -9 of the server in the middle",
}


def main() -> None:
    """Run the benchmark."""
    parser = common.arguments(chaos.__doc__, repeats=1)
    names = "; ".join(f"`{name}`: {what}" for name, what in FAULTS.items())
    parser.add_argument("fault", choices=sorted(FAULTS), help=names)
    parser.add_argument("--seconds", type=float, default=120, help="how long the fault, or the load, lasts")
    parser.add_argument("--times", type=int, default=50, help="how often the fault happens")
    parser.add_argument("--executor", choices=["inline", "process", "ray"], default="process")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--base", choices=["tiny", "shipped"], default="tiny", help="the model that answers")
    parser.add_argument("--keep", type=Path, help="folder for the servers' data and logs, which then stay")
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the batch")
    options, more = parser.parse_known_args()
    if options.quick:
        options.rows = min(options.rows, 2000)
        options.seconds, options.times = min(options.seconds, 5.0), min(options.times, 2)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        posterior = ("--posterior", options.posterior) if options.posterior else ()
        model = tiny_base(folder / "base") if options.base == "tiny" else posterior
        setup = Setup(
            folder, options.seconds, options.times, options.seed, options.executor, options.workers,
            options.rows, model, tuple(more),
        )  # fmt: skip
        report = asyncio.run(importlib.import_module(f"benchmarks.chaos.{options.fault}").run(setup))
    how = (
        f"Base: {options.base}. Executor: {options.executor}, {options.workers} worker(s), one thread each. "
        f"{'Every promise held.' if report.held else 'NOT every promise held.'}"
    )
    name = f"chaos_{options.fault}" + ("_ray" if options.executor == "ray" else "")
    tables = [report.promises(), *report.tables]
    common.write_results(name, report.title, [*report.about, how], tables, report.content(), options)
    if not report.held:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
