"""Plan the memory of Llama shapes of 1B, 8B and 70B in NF4 on GPUs of 24, 40 and 80 GB.

    python -m benchmarks.memory_table

Nothing is measured. The shapes are built without weights (on the `meta` device) and go through the
cost functions that a server runs at its start (`abmll/memory_plan.py`), on the path of a GPU. The
adapters are of rank 8 in the upper half of the layers, in bf16. `scale_8b` compares such a plan
with the memory that a run takes.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from abmll.decoder.backbone import Backbone
from abmll.decoder.layout import AdapterLayout
from abmll.memory_plan import MemoryCosts, measure_costs
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.posteriors import GlobalPosterior
from benchmarks import common
from benchmarks.scale_8b import Shape

SHAPES = {
    "1B": Shape(16, 2048, 8192, 32, 8, tied=True),
    "8B": Shape(),
    "70B": Shape(80, 8192, 28672, 64, 8),
}
CARDS = (24, 40, 80)
# NF4 takes half a byte a weight, a byte of scale for 64 weights, and four bytes for 256 scales.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# Memory that is left to the CUDA context, libraries and the allocator.
RESERVED_BYTES = int(1.5 * 2**30)
FORMULA = (
    "`base + transient + slots * slot + "
    "max(adaptation + adapt tokens * adapt cost, samples + predict tokens * predict cost)`"
)


def main() -> None:
    parser = common.arguments(__doc__)
    options = parser.parse_args()
    rows: list[list[Any]] = []
    data: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        costs = shape_costs(shape.config())
        data[name] = asdict(costs)
        rows += [row(name, costs, card) for card in CARDS]
    about = (
        f"Peak = {FORMULA}; `abmll/memory_plan.py` says each. Of a card, {RESERVED_BYTES / 2**30:.1f} GiB are left to the "
        "CUDA context and the allocator. A quarter of what is left beside the base holds adapters (slots); the rest is one pass, "
        "at most 8,192 tokens of support (one gradient step) or tokens x samples; 8 examples of 100 tokens are 800. "
        "Planned from shapes alone: no GPU was at hand, and nothing here was measured on one."
    )
    head = ["model", "card GB", "base GiB", "transient GiB", "slot MiB", "slots", "adapt KiB a token", "adapt tokens a step",
            "predict KiB a token", "predict tokens x samples a pass", "planned peak GiB"]  # fmt: skip
    common.write_results(
        "memory_table", "Planned memory on GPUs", [about], [common.table(head, rows)], data, options
    )


def row(name: str, costs: MemoryCosts, card: int) -> list[Any]:
    """Return the row of one plan, for a card of `card` gigabytes (10^9 bytes)."""
    budget = card * 10**9 - RESERVED_BYTES - costs.base_bytes
    gib, per_token = 2**30, (costs.adapt_bytes_per_token, costs.predict_bytes_per_token)
    fixed = [name, card, costs.base_bytes / gib, costs.transient_bytes / gib, costs.slot_bytes / 2**20]
    plan, adapt_kib, predict_kib = costs.plan(budget), per_token[0] // 1024, per_token[1] // 1024
    if plan.peak_bytes > budget + costs.base_bytes:
        return [*fixed, "does not fit", adapt_kib, "", predict_kib, "", ""]
    planned = plan.peak_bytes / gib
    return [*fixed, plan.slots, adapt_kib, plan.adapt_tokens, predict_kib, plan.predict_tokens, planned]


def shape_costs(config: LlamaConfig) -> MemoryCosts:
    """Return the costs of a model with these sizes: decoder linears in NF4, all else in bf16."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    linears = [
        module.weight.numel()
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path != "lm_head"
    ]
    backbone = Backbone(model, AdapterLayout(first_layer=config.num_hidden_layers // 2))
    dense = measure_costs(
        backbone, GlobalPosterior.untrained(PosteriorConfig(backbone.layout), backbone.sites)
    )
    base = dense.base_bytes - 2 * sum(linears) + int(NF4_BYTES * sum(linears))
    return replace(dense, base_bytes=base, transient_bytes=2 * max(linears))


if __name__ == "__main__":
    main()
