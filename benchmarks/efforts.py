"""Measure what each effort of an adaptation takes over HTTP, with one answer behind it.

    python -m benchmarks.efforts

A server that does nothing else gets one request after the other, each with the examples and one
input. The unit is one forward pass of the base over the support with its options, in passes of the
same size, in this process while the server waits. All arms are interleaved.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import get_args

import httpx
import torch

from abmll.adaptation.settings import Effort
from abmll.adaptation.support import TOKENS_PER_TRUNK
from abmll.decoder.rows import collate, packed_length, token_batches
from benchmarks import common
from benchmarks.common import Cell, Served
from benchmarks.http_server import Server

TASKS = ("ag_news", "emotion", "social_i_qa")
SHOTS = 16


def main() -> None:
    parser = common.arguments(__doc__, repeats=3, data=True)
    options = parser.parse_args()
    tasks: tuple[str, ...] = TASKS
    if options.quick:
        tasks, options.repeats = TASKS[:1], 1
    served = common.load_served(options.posterior, options.threads)
    serve = ["--threads", str(options.threads), "--posterior", options.posterior or served.manifest.id]
    found = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(Path(folder) / "data", serve) as server,
        httpx.Client(base_url=server.url, timeout=600) as http,
    ):
        for name in tasks:
            cell = common.read_cell(options.data, name, SHOTS, 1, options.seed)
            found[name] = timed(served, http, cell, options)
            print(name, found[name], flush=True)
    about = (
        f"`POST /v1/predict` with {SHOTS} examples and one input (S = 16), over HTTP, on a server that does nothing else. The "
        "first column is one forward pass of the base over the support; the others are multiples of it."
    )
    head = ["task", "base forward s", *get_args(Effort)]
    rows = [
        [name, of["base"], *(f"{of[e] / of['base']:.1f} x ({of[e]:.2f} s)" for e in get_args(Effort))]
        for name, of in found.items()
    ]
    common.write_results(
        "effort_times", "Time of each effort", [about], [common.table(head, rows)], {"seconds": found}, options,
        served.dtype,
    )  # fmt: skip


def timed(served: Served, http: httpx.Client, cell: Cell, options: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds of the base's forward pass and of each effort."""
    model, backbone = served.model, served.model.backbone
    prompts = [example.prompt for example in model.encode_support(cell.support, truncate=True)]
    seeds = count(options.seed)
    batches = token_batches([packed_length(prompt) for prompt in prompts], TOKENS_PER_TRUNK)

    @torch.no_grad()
    def base() -> None:
        for batch in batches:
            rows = collate([prompts[i] for i in batch], backbone.device)
            backbone.log_probs(backbone.trunk(rows), rows, None).cpu()

    def answered(effort: Effort) -> Callable[[], object]:
        def run() -> None:
            body = {
                "support": [
                    {"input": row.input, "output": row.output, "options": row.options} for row in cell.support
                ],
                "inputs": [{"input": query.input, "options": query.options} for query in cell.queries],
                "adapt": {"effort": effort},
                "seed": next(seeds),  # an adapter of its own
                "samples": 16,
                "truncate": True,
            }
            answer = http.post("/v1/predict", json=body).raise_for_status().json()
            if answer["cache"] != "miss":
                raise SystemExit(f"the adapter was there already: {answer['cache']}")

        return run

    arms = {"base": base} | {effort: answered(effort) for effort in get_args(Effort)}
    for run in arms.values():
        run()  # warms up
    return common.medians(common.interleaved(arms, options.repeats))


if __name__ == "__main__":
    main()
