"""Measure what products of int8 weights and int8 activations save below the adapted layers.

    python -m benchmarks.int8_products --data ../shared/data --threads 1

The weights of the embedded base are int8 already, and are made dense to be multiplied. Here they
are multiplied as int8: each row of activations is rounded to 127 steps of its largest value. Each
form answers the same inputs by the mean of the same adapters, interleaved with the dense products
in the dtype of this machine and in fp32.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from abmll.posterior.posteriors import TaskPosterior
from benchmarks import common
from benchmarks.common import Cell, Served

OUTLIERS = 16
Form = Callable[[str, nn.Linear], nn.Module]


class Int8Linear(nn.Module):
    """Linear layer without bias, of int8 weights and activations.

    The `outliers` columns of the largest activations are multiplied in the activations' dtype, as
    in LLM.int8() (Dettmers et al. 2022).
    """

    def __init__(self, weight: Tensor, outliers: int = 0) -> None:
        super().__init__()
        self.dense, self.outliers = weight, outliers
        self.scale = weight.float().abs().amax(1) / 127
        self.rounded = (weight.float() / self.scale[:, None]).round().to(torch.int8).T.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Return W x."""
        flat = x.reshape(-1, x.shape[-1])
        apart = None
        if self.outliers:
            columns = flat.abs().amax(0).topk(self.outliers).indices
            apart = linear(flat[:, columns], self.dense[:, columns])
            flat = flat.index_fill(1, columns, 0)
        flat = flat.float()
        scale = flat.abs().amax(1, keepdim=True).clamp_min(1e-8) / 127
        product = torch._int_mm((flat / scale).round_().to(torch.int8), self.rounded)
        out = (product.float() * scale * self.scale).to(x.dtype)
        return (out if apart is None else out + apart).view(*x.shape[:-1], -1)


class FloatLinear(nn.Module):
    """Linear layer without bias that multiplies in fp32."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight.float()

    def forward(self, x: Tensor) -> Tensor:
        """Return W x."""
        return linear(x.float(), self.weight).to(x.dtype)


FORMS: dict[str, Form] = {
    "dense": lambda _, layer: layer,
    "dense, fp32": lambda _, layer: FloatLinear(layer.weight.detach()),
    "int8": lambda _, layer: Int8Linear(layer.weight.detach()),
    "int8 but for the down projections": lambda name, layer: (
        layer if "down_proj" in name else Int8Linear(layer.weight.detach())
    ),
    f"int8, {OUTLIERS} columns apart": lambda _, layer: Int8Linear(layer.weight.detach(), OUTLIERS),
}


def main() -> None:
    parser = common.arguments(__doc__, data=True, repeats=3)
    parser.add_argument("--tasks", nargs="+", default=["ag_news", "emotion", "tweet_eval-hate"])
    parser.add_argument("--items", type=int, default=64)
    options = parser.parse_args()
    if options.quick:
        options.tasks, options.items, options.repeats = options.tasks[:1], 2, 1
    served = common.load_served(options.posterior, options.threads)
    cells = [common.read_cell(options.data, name, 16, options.items, options.seed) for name in options.tasks]
    rows = compare(served, cells, options)
    about = (
        f"Products of the layers below the adapted ones. {len(cells)} tasks ({', '.join(options.tasks)}), "
        f"16 examples, {options.items} inputs each, by the mean. `moves` is the largest difference of any "
        "option's probability of an input from the dense products, by input; `x` is the time over that of "
        "the dense products."
    )
    head = ["products", "x", "mean of moves", "largest move", "accuracy", "NLL"]
    title = "Are products of int8 worth it on this processor?"
    common.write_results(
        "int8_products", title, [about], [common.table(head, rows)], {"rows": rows}, options, served.dtype
    )


def compare(served: Served, cells: list[Cell], options: Any) -> list[list[Any]]:
    """Return a row for each form of the products."""
    trunk = served.model.backbone._trunk
    layers = {name: layer for name, layer in trunk.named_modules() if isinstance(layer, nn.Linear)}
    forms = {
        form: {name: make(name, layer) for name, layer in layers.items()} for form, make in FORMS.items()
    }
    adapted = [served.model.adapt(cell.support, seed=options.seed).posterior for cell in cells]
    answers: dict[str, np.ndarray] = {}
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    labels = [label for cell in cells for label in cell.labels]
    for _ in range(options.repeats):
        for form, made in forms.items():
            for name, layer in made.items():
                parent, _, last = name.rpartition(".")
                setattr(trunk.get_submodule(parent), last, layer)
            started = time.perf_counter()
            answers[form] = answer(served, adapted, cells)
            seconds[form].append(time.perf_counter() - started)
    dense = answers["dense"]
    rows: list[list[Any]] = []
    for form, found in answers.items():
        moves = np.nanmax(np.abs(found - dense), axis=1)
        right = float(np.mean(np.nanargmax(found, axis=1) == labels))
        nll = float(-np.log(found[np.arange(len(labels)), labels]).mean())
        ratio = float(np.median(seconds[form]) / np.median(seconds["dense"]))
        rows.append(
            [form, f"{ratio:.2f}", f"{moves.mean():.4f}", f"{moves.max():.3f}", f"{right:.3f}", f"{nll:.3f}"]
        )
    return rows


def answer(served: Served, adapted: list[TaskPosterior], cells: list[Cell]) -> np.ndarray:
    """Return the probabilities [inputs, options] by the mean; NaN where a task has fewer options."""
    found = [
        row
        for posterior, cell in zip(adapted, cells, strict=True)
        for row in common.probabilities(served.model.predict(posterior, cell.queries, samples=0))
    ]
    filled = np.full((len(found), max(map(len, found))), np.nan)
    for place, row in enumerate(found):
        filled[place, : len(row)] = row
    return filled


if __name__ == "__main__":
    main()
