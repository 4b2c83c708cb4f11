"""Measure what each effort of an adaptation takes, with one answer behind it.

    python -m benchmarks.efforts

The unit is one forward pass of the base over the support with its options, in passes of the same
size. All arms run in one process, interleaved.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import get_args

import torch

from abmll.adaptation.settings import Effort, settings_of
from abmll.adaptation.support import TOKENS_PER_TRUNK
from abmll.decoder.rows import collate, packed_length, token_batches
from benchmarks import common
from benchmarks.common import Cell, Served

TASKS = ("ag_news", "emotion", "social_i_qa")
SHOTS = 16


def main() -> None:
    parser = common.arguments(__doc__, repeats=3, data=True)
    options = parser.parse_args()
    tasks: tuple[str, ...] = TASKS
    if options.quick:
        tasks, options.repeats = TASKS[:1], 1
    served = common.load_served(options.posterior, options.threads)
    found = {}
    for name in tasks:
        cell = common.read_cell(options.data, name, SHOTS, 1, options.seed)
        found[name] = timed(served, cell, options)
        print(name, found[name], flush=True)
    about = (
        f"Adaptation to {SHOTS} examples and one answer (S = 16), in this process. The first column is one forward pass of "
        "the base over the support; the others are multiples of it."
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


def timed(served: Served, cell: Cell, options: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds of the base's forward pass and of each effort."""
    model, backbone = served.model, served.model.backbone
    prompts = [example.prompt for example in model.encode_support(cell.support, truncate=True)]
    batches = token_batches([packed_length(prompt) for prompt in prompts], TOKENS_PER_TRUNK)

    @torch.no_grad()
    def base() -> None:
        for batch in batches:
            rows = collate([prompts[i] for i in batch], backbone.device)
            backbone.log_probs(backbone.trunk(rows), rows, None).cpu()

    def answered(effort: Effort) -> Callable[[], object]:
        settings = settings_of(effort, model.defaults)

        def run() -> None:
            posterior = model.adapt(cell.support, settings, options.seed, truncate=True).posterior
            model.predict(posterior, cell.queries, samples=16, seed=options.seed, truncate=True)

        return run

    arms = {"base": base} | {effort: answered(effort) for effort in get_args(Effort)}
    for run in arms.values():
        run()  # warms up
    return common.medians(common.interleaved(arms, options.repeats))


if __name__ == "__main__":
    main()
