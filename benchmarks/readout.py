"""Measure what samples cost that differ in the readout alone, against the mean and full samples.

    python -m benchmarks.readout

First the scores of such samples are compared with those of the same samples as LoRA adapters, which
take the whole vocabulary into the normaliser. Then four predictions are timed in one run: the mean,
16 and 64 samples of the readout, and 16 samples of every site.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import torch

from abmll.decoder.rows import collate
from abmll.posterior.noise.draws import means, readout_noise
from abmll.posterior.noise.point import Lora, LoraSamples
from abmll.posterior.plain_lora import PlainLora, sample_loras
from abmll.posterior.posteriors import TaskPosterior
from abmll.prediction.settings import PredictSettings
from abmll.seeds import sample_seeds
from benchmarks import common
from benchmarks.common import Cell, Served

TASKS = ("ag_news", "social_i_qa")
ARMS = ("mean", "readout-S16", "readout-S64", "everywhere-S16")
# Inputs and samples that scores are compared for.
COMPARED_INPUTS, COMPARED_SAMPLES = 8, 4
# Most that a log-probability by token may differ, in nats. It is the error of the normaliser, of
# second order in a sample's move: with the posterior that ships, the scale 6 and fp32 at most .35,
# with the scale 3 .07.
ALLOWED_NATS = {torch.float32: 0.5, torch.bfloat16: 0.5}


def main() -> None:
    parser = common.arguments(__doc__, repeats=3, data=True)
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--scale", type=float, default=6.0, help="scale of the readout's noise")
    options = parser.parse_args()
    if options.quick:
        options.items, options.repeats = 4, 1
    served = common.load_served(options.posterior, options.threads)
    sentences: list[str] = []
    found: dict[str, list[float]] = {}
    for name in TASKS:
        cell = common.read_cell(options.data, name, 16, options.items, options.seed)
        posterior = served.model.adapt(cell.support, seed=options.seed, truncate=True).posterior
        readout = posterior.with_readout_scale(options.scale)
        difference = largest_gap(served, readout, cell)
        sentences.append(
            common.check_close(f"{name}, scores in nats by token", difference, ALLOWED_NATS[served.dtype])
        )
        found[name] = timed(served, posterior.with_readout_scale("off"), readout, cell, options)
    about = (
        f"{options.items} inputs of each task under an adapter of 16 examples; the readout's noise has the scale "
        f"{options.scale:g}. ag_news has four classes, social_i_qa three options that differ from input to input."
    )
    compared = (
        f"Scores of {COMPARED_SAMPLES} samples of {COMPARED_INPUTS} inputs against those of the same samples as "
        f"LoRA adapters, with all words in the normaliser. {'. '.join(sentences)}."
    )
    head = ["task", "mean s", "S = 16", "S = 64", "S = 16 of every site"]
    times = [[name, of[0], *(f"{s:.2f} s, {s / of[0]:.2f} x" for s in of[1:])] for name, of in found.items()]
    data = {"seconds": {name: dict(zip(ARMS, of, strict=True)) for name, of in found.items()}}
    title = "Samples of the readout"
    common.write_results(
        "readout", title, [about, compared], [common.table(head, times)], data, options, served.dtype
    )


def largest_gap(served: Served, posterior: TaskPosterior, cell: Cell) -> float:
    """Return the largest difference of a continuation's log-probability by token, in nats."""
    model, backbone = served.model, served.model.backbone
    prompts = model.encode_queries(cell.queries[:COMPARED_INPUTS], PredictSettings(), truncate=True)
    rows = collate(prompts, backbone.device)
    trunk, values = backbone.trunk(rows), posterior.values[None]
    mean = means(posterior.config, backbone.sites, values).for_rows([0] * len(prompts), rows.lengths)
    seeds = sample_seeds(1, 0, COMPARED_SAMPLES, paired=True)
    noise = readout_noise(posterior.config, backbone.sites, values[0], seeds=seeds, dtype=served.dtype)
    found = backbone.readout_log_probs(backbone.readout(trunk, rows, mean), noise.of, rows)
    drawn = [list(sample_loras(posterior, 1, number).values()) for number in range(COMPARED_SAMPLES)]
    whole = LoraSamples([stacked(of_site) for of_site in zip(*drawn, strict=True)])
    lengths = torch.tensor([len(ids) for prompt in prompts for ids in prompt.continuations])
    gap = 0.0
    for number, scores in enumerate(found):
        draw = whole.for_rows([number] * len(prompts), rows.lengths)
        with torch.no_grad():
            exact = backbone.log_probs(trunk, rows, draw)
        gap = max(gap, float(((scores - exact).cpu() / lengths).abs().max()))
    return gap


def stacked(loras: Sequence[PlainLora]) -> Lora:
    """Return one site's LoRAs as one record."""
    return Lora(
        torch.stack([lora.a for lora in loras]), torch.stack([lora.scaling * lora.b for lora in loras])
    )


def timed(
    served: Served, full: TaskPosterior, readout: TaskPosterior, cell: Cell, options: argparse.Namespace
) -> list[float]:
    """Return the median seconds of each of `ARMS`."""
    predict = partial(served.model.predict, queries=cell.queries, seed=1, truncate=True)
    asked = ((readout, 0), (readout, 16), (readout, 64), (full, 16))
    arms = {name: partial(predict, of, samples=s) for name, (of, s) in zip(ARMS, asked, strict=True)}
    arms["readout-S16"]()  # warms up
    return list(common.medians(common.interleaved(arms, options.repeats)).values())


if __name__ == "__main__":
    main()
