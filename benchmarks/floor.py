"""Compare our time with that of the bare matrix products that cannot be avoided (the floor).

    python -m benchmarks.floor --data ../shared/data

The products have the same shapes, dtype and threads. Their tensors are allocated before, and they
count real tokens only (no padding). Each layer has weights of its own: in a model no weight stays
in the cache from one product to the next.

- adapt: the trunk once over the support. For every step and its tokens: the forward and
  activation-gradient products of the adapted layers, the head at the distinct scored positions
  forward and backward, and the rank-r products of the means forward and backward (activations, A
  and B).
- predict: the trunk once over the queries. For every sample: the adapted layers, the head at the
  scored positions, and the rank-r products. Where samples differ in the readout alone, the mean
  once, and for every sample the rank-r products of the readout at the scored positions.

In the last layer only scored positions count, except in the products of keys and values.

The floor does not have attention, norms, activations, softmax, the optimiser and the noise, which
cannot be avoided either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from abmll.model import FewShotModel
from abmll.text.prompting import EncodedPrompt
from benchmarks import common
from benchmarks.common import Served
from benchmarks.profiling import FAMILIES, REST, shares

# A product [m, k] x [k, n].
Product = tuple[int, int, int]
# Right factors of a shape: as many as the default model has adapted layers.
WEIGHTS = 15
# Samples share a product up to this many tokens; larger products are no faster.
TOKENS_PER_PRODUCT = 4096


def main() -> None:
    parser = common.arguments(__doc__, data=True)
    parser.add_argument("--task", default="ag_news")
    parser.add_argument("--rows", nargs="+", type=int, default=[8, 16, 64])
    parser.add_argument("--samples", type=int, default=16)
    options = parser.parse_args()
    if options.quick:
        options.rows, options.samples, options.repeats = [4], 2, 1
    served = common.load_served(options.posterior, options.threads, total_scores=True)
    rows, detail, spent = [], {}, {}
    for count in options.rows:
        for what, arms, work in cases(served, count, options):
            for run in arms.values():  # warms up both
                run()
            seconds = common.interleaved(arms, options.repeats)
            middle = common.medians(seconds)
            gflop = 2e-9 * sum(m * k * n * times for (m, k, n), times in work.items())
            ours, floor = middle["ours"], middle["floor"]
            rows.append([what, count, ours, floor, ours / floor, gflop, gflop / floor])
            detail[f"{what} {count}"] = {"seconds": seconds, "gflop": gflop}
            print(rows[-1], flush=True)
            spent[f"{what}, {count} rows"] = shares(arms["ours"])
    about = (
        f"Task {options.task}; rows are support examples for adapt and queries for predict; S = {options.samples}; settings "
        f"`{served.manifest.adapt}`. The floor is matrix products alone, over real tokens; attention, norms, softmax, optimiser "
        "and noise are only in ours."
    )
    head = ["", "rows", "ours s", "floor s", "ours / floor", "floor GFLOP", "floor GFLOP/s"]
    title = "Against the floor of matrix products"
    families = sorted({name for found in spent.values() for name in found}, key=[*FAMILIES, REST].index)
    body = [[name, *(f"{100 * found.get(name, 0):.1f}" for found in spent.values())] for name in families]
    tables = [
        common.table(head, rows),
        "Processor time of ours by family of operators, in per cent, from a run under torch's profiler (which slows small "
        "operators most). Matrix products include those of the noise, which the floor does not have.",
        common.table(["", *spent], body),
    ]
    data = {"times": detail, "shares": spent}
    common.write_results("floor", title, [about], tables, data, options, served.dtype)


def cases(
    served: Served, count: int, options: Any
) -> list[tuple[str, dict[str, Callable[[], object]], Counter[Product]]]:
    """Return adapt and predict at `count` rows.

    Each has a name, our run and that of the floor, and the products of the floor.
    """
    model, seed = served.model, options.seed
    cell = common.read_cell(options.data, options.task, count, count, seed)
    support = [example.prompt for example in model.encode_support(cell.support)]
    queries = [model.encoder.encode(query) for query in cell.queries]
    shapes = Shapes.of(model)
    adapt = shapes.adaptation(support)
    predict = shapes.prediction(queries, options.samples)
    adapted = model.adapt(cell.support, seed=seed).posterior
    return [
        (
            "adapt",
            {"ours": lambda: model.adapt(cell.support, seed=seed), "floor": bare(adapt, served.dtype)},
            adapt,
        ),
        (
            "predict",
            {
                "ours": lambda: model.predict(adapted, cell.queries, samples=options.samples, seed=seed),
                "floor": bare(predict, served.dtype),
            },
            predict,
        ),
    ]


def packed_tokens(prompts: Sequence[EncodedPrompt]) -> int:
    """Count the tokens to read: each prompt, and its continuations without their last tokens."""
    return sum(len(p.prompt) + sum(len(ids) - 1 for ids in p.continuations) for p in prompts)


def scored_positions(prompts: Sequence[EncodedPrompt]) -> int:
    """Return at how many distinct positions logits are needed.

    These are the last of each prompt, and all but the last of every continuation.
    """
    return sum(1 + sum(len(ids) - 1 for ids in p.continuations) for p in prompts)


class Shapes:
    """Products of a model and its adapter; `linears` are (d_in, d_out, module) of one layer."""

    def __init__(
        self,
        linears: Sequence[tuple[int, int, str]],
        layers: tuple[int, int],
        head: tuple[int, int],
        adapted: Sequence[str],
        rank: int,
        steps: tuple[int, int],
        *,
        readout: bool = False,
    ) -> None:
        """Keep the sizes.

        `layers` are the numbers of frozen and of adapted layers, `head` is (d, vocabulary), and
        `steps` is (steps, batch size). With `readout`, samples differ in the last linear alone.
        """
        self.linears, self.layers, self.head = linears, layers, head
        self.adapted, self.rank, self.steps, self.readout = set(adapted), rank, steps, readout

    @classmethod
    def of(cls, model: FewShotModel) -> Shapes:
        """Read the sizes of `model`."""
        config, layout = model.backbone.model.config, model.prior.config.layout
        d, inner = config.hidden_size, config.intermediate_size
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        size = getattr(config, "head_dim", None) or d // heads
        q, kv = heads * size, kv_heads * size
        linears = [
            (d, q, "q"), (d, kv, "k"), (d, kv, "v"), (q, d, "o"), (d, inner, "gate"), (d, inner, "up"), (inner, d, "down"),
        ]  # fmt: skip
        settings = model.defaults
        layers = layout.first_layer, config.num_hidden_layers - layout.first_layer
        head, steps = (d, config.vocab_size), (settings.steps, settings.batch_size)
        readout = model.sampled(model.prior.config).noise.readout_scale is not None
        return cls(linears, layers, head, layout.modules, layout.rank, steps, readout=readout)

    def adaptation(self, support: Sequence[EncodedPrompt]) -> Counter[Product]:
        """Count the products of an adaptation whose steps go through the support in order."""
        frozen, adapted = self.layers
        work = self._forward(packed_tokens(support), packed_tokens(support), frozen)
        steps, batch_size = self.steps
        size = min(batch_size, len(support))
        for step in range(steps):
            batch = [support[(step * size + i) % len(support)] for i in range(size)]
            tokens, scored = packed_tokens(batch), scored_positions(batch)
            work += self._forward(tokens, scored, adapted) + self._low_rank(tokens, scored, adapted)
            work += self._backward(tokens, scored, adapted)
            d, vocabulary = self.head
            work += Counter({(scored, d, vocabulary): 1, (scored, vocabulary, d): 1})
        return work

    def prediction(self, queries: Sequence[EncodedPrompt], samples: int) -> Counter[Product]:
        """Count the products of a prediction.

        As many samples share a product as stay within `TOKENS_PER_PRODUCT`.
        """
        frozen, adapted = self.layers
        tokens, scored = packed_tokens(queries), scored_positions(queries)
        work = self._forward(tokens, tokens, frozen)
        if self.readout:
            work += self._forward(tokens, scored, adapted) + self._low_rank(tokens, scored, adapted)
            d_in, d_out, _ = self.linears[-1]
            return work + Counter(
                {
                    (scored, *self.head): 1,
                    (scored, d_in, self.rank): samples,
                    (scored, self.rank, d_out): samples,
                }
            )
        together = max(1, min(samples, TOKENS_PER_PRODUCT // tokens))
        for start in range(0, samples, together):
            count = min(together, samples - start)
            work += self._forward(count * tokens, count * scored, adapted)
            work += Counter({(count * scored, *self.head): 1})
        for product, times in self._low_rank(tokens, scored, adapted).items():
            work[product] += samples * times
        return work

    def _layers(self, tokens: int, scored: int, layers: int) -> Iterator[tuple[int, int, str, int, int]]:
        """Yield (d_in, d_out, module, tokens, layers) of every linear.

        In the last layer all but k and v have scored tokens alone.
        """
        for d_in, d_out, module in self.linears:
            if layers > 1:
                yield d_in, d_out, module, tokens, layers - 1
            yield d_in, d_out, module, tokens if module in {"k", "v"} else scored, 1

    def _forward(self, tokens: int, scored: int, layers: int) -> Counter[Product]:
        work: Counter[Product] = Counter()
        for d_in, d_out, _, count, times in self._layers(tokens, scored, layers):
            work[count, d_in, d_out] += times
        return work

    def _low_rank(self, tokens: int, scored: int, layers: int) -> Counter[Product]:
        work: Counter[Product] = Counter()
        for d_in, d_out, module, count, times in self._layers(tokens, scored, layers):
            if module in self.adapted:
                work[count, d_in, self.rank] += times
                work[count, self.rank, d_out] += times
        return work

    def _backward(self, tokens: int, scored: int, layers: int) -> Counter[Product]:
        """Count the products of the gradients of activations, A and B.

        The gradient of the input of the lowest adapted layer is not needed.
        """
        work: Counter[Product] = Counter()
        lowest = {"q", "k", "v"}
        for d_in, d_out, module, count, times in self._layers(tokens, scored, layers):
            needed = times - (module in lowest)
            lowest -= {module}
            work[count, d_out, d_in] += needed
            if module in self.adapted:
                work[d_out, count, self.rank] += times  # B
                work[count, d_out, self.rank] += times  # A x
                work[self.rank, count, d_in] += times  # A
                work[count, self.rank, d_in] += needed  # x
        return work


def bare(
    work: Counter[Product], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Callable[[], object]:
    """Return a function that does every product of `work` as often as it is counted.

    The products with right factors of one shape take up to `WEIGHTS` of them in turn.
    """
    rights: dict[tuple[int, int], list[torch.Tensor]] = {}
    for (_, k, n), times in work.items():
        own = rights.setdefault((k, n), [])
        missing = min(times, WEIGHTS) - len(own)
        own += [torch.randn(n, k, dtype=dtype, device=device).T for _ in range(missing)]
    made = [
        (
            torch.randn(m, k, dtype=dtype, device=device),
            rights[k, n],
            torch.empty(m, n, dtype=dtype, device=device),
            times,
        )
        for (m, k, n), times in work.items()
        if times
    ]

    def run() -> None:
        for left, rights, out, times in made:
            for i in range(times):
                torch.mm(left, rights[i % len(rights)], out=out)

    return run


if __name__ == "__main__":
    main()
