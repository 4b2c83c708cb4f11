"""Measure how time grows with the support, the options, the samples, and the length of prompts.

    python -m benchmarks.scaling

The results are four tables and a plot. The texts are random words: times depend on lengths, not on
meaning. Options have two or three words, like intents. One size at a time differs from a middle
case; every point is the median of interleaved repeats.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import matplotlib

from abmll.text.tasks import Example, Query
from benchmarks import common
from benchmarks.common import Served

WORDS = [
    "account", "amount", "answer", "apply", "balance", "bank", "bill", "branch", "business", "call",
    "cancel", "card", "cash", "change", "charge", "check", "claim", "code", "confirm", "contact",
    "country", "credit", "currency", "customer", "date", "day", "delay", "deposit", "detail", "email",
    "error", "exchange", "fail", "fee", "find", "freeze", "fund", "help", "identity", "invoice",
    "issue", "late", "limit", "link", "loan", "lost", "machine", "market", "match", "message", "money",
    "name", "need", "new", "number", "offer", "old", "open", "order", "pass", "pay", "pending", "phone",
    "place", "plan", "price", "problem", "process", "question", "rate", "reason", "receive", "refund",
    "report", "request", "return", "reverse", "right", "safe", "salary", "save", "send", "service",
    "small", "statement", "stop", "support", "team", "time", "top", "track", "transfer", "travel",
    "update", "use", "verify", "visit", "wait", "want", "week", "work", "world", "wrong", "year",
]  # fmt: skip


@dataclass(frozen=True)
class Point:
    """Sizes of one few-shot problem; `words` are those of an input."""

    support: int = 16
    options: int = 4
    samples: int = 8
    words: int = 30


AXES = {
    "support": [4, 8, 16, 32, 64],
    "options": [2, 5, 15, 40, 77],
    "samples": [1, 4, 16, 64],
    "words": [10, 30, 100, 300],
}
# The calls whose time each axis changes.
PARTS = {
    "support": ("adapt",),
    "options": ("adapt", "predict"),
    "samples": ("predict",),
    "words": ("adapt", "predict"),
}


def main() -> None:
    parser = common.arguments(__doc__, repeats=3)
    parser.add_argument("--items", type=int, default=8, help="queries of a prediction")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    options = parser.parse_args()
    middle, axes = Point(), {name: AXES[name] for name in options.axes}
    if options.quick:
        middle, options.items, options.repeats = Point(4, 2, 1, 8), 2, 1
        axes = {name: [min(values), min(values) * 2] for name, values in axes.items()}
    served = common.load_served(options.posterior, options.threads)
    found = {name: measure(served, middle, name, values, options) for name, values in axes.items()}
    about = (
        f"Middle case: {middle.support} support examples, {middle.options} options, S = {middle.samples}, {middle.words} words; "
        f"{options.items} queries. Settings `{served.manifest.adapt}`: a step has at most a batch of the support, "
        "so with more examples only the time of the trunk grows."
    )
    tables = []
    for name, rows in found.items():
        parts = PARTS[name]
        head = [name, "tokens of a prompt with its options", *(f"{part} s" for part in parts)]
        body = [[row["value"], row["tokens"], *(row[part] for part in parts)] for row in rows]
        tables.append(common.table(head, body))
    title = "How the cost grows"
    tables.append("![Seconds by support, options, samples and prompt length](scaling.png)")
    path = common.write_results("scaling", title, [about], tables, found, options, served.dtype)
    plot(found, path.with_suffix(".png"))


def measure(
    served: Served, middle: Point, axis: str, values: list[int], options: Any
) -> list[dict[str, Any]]:
    """Return the median seconds at each value of one axis."""
    arms: dict[str, Callable[[], object]] = {}
    tokens = {}
    for value in values:
        support, queries, samples = make(replace(middle, **{axis: value}), options)
        tokens[value] = mean_tokens(served, support)
        # Both calls warm up, too.
        adaptation = served.model.adapt(support, replace(served.model.defaults, steps=1))
        served.model.predict(adaptation.posterior, queries, samples=min(samples, 1))
        if "adapt" in PARTS[axis]:
            arms[f"adapt {value}"] = partial(served.model.adapt, support)
        if "predict" in PARTS[axis]:
            phi = adaptation.posterior
            arms[f"predict {value}"] = partial(served.model.predict, phi, queries, samples=samples)
    seconds = common.medians(common.interleaved(arms, options.repeats))
    rows = []
    for value in values:
        row = {"value": value, "tokens": tokens[value]}
        row |= {part: seconds[f"{part} {value}"] for part in PARTS[axis]}
        print(axis, row, flush=True)
        rows.append(row)
    return rows


def make(point: Point, options: Any) -> tuple[list[Example], list[Query], int]:
    """Return a random problem of these sizes: support, queries, and the number of samples."""
    rng = random.Random(options.seed)
    labels: list[str] = []
    while len(labels) < point.options:
        label = " ".join(rng.sample(WORDS, rng.choice([2, 3])))
        if label not in labels:
            labels.append(label)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=point.words)) + "."

    # The labels of the first two examples differ, since a support of one class is refused.
    support = [Example(text(), labels[i % len(labels)], tuple(labels)) for i in range(point.support)]
    return support, [Query(text(), tuple(labels)) for _ in range(options.items)], point.samples


def mean_tokens(served: Served, support: list[Example]) -> float:
    """Return the mean number of tokens of a prompt with its options."""
    encoded = served.model.encode_support(support)
    return sum(example.prompt.tokens for example in encoded) / len(encoded)


def plot(found: dict[str, list[dict[str, Any]]], path: Any) -> None:
    """Plot seconds over each axis, both logarithmic."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is set

    figure, panels = plt.subplots(
        1, len(found), figsize=(3.2 * len(found), 3), layout="constrained", squeeze=False
    )
    for panel, (name, rows) in zip(panels[0], found.items(), strict=True):
        for part in PARTS[name]:
            panel.loglog([row["value"] for row in rows], [row[part] for row in rows], marker="o", label=part)
        values = [row["value"] for row in rows]
        panel.minorticks_off()
        panel.set_xticks(values, [str(value) for value in values])
        panel.set(xlabel=name, ylabel="seconds")
        panel.grid(visible=True, which="both", alpha=0.3)
        panel.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
