"""Measure the processor time of a run by families of operators (self time of torch's profiler)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

REST = "Python and the rest"
# An operator belongs to the first family one of whose words is in its name.
FAMILIES = {
    "matrix products": ("aten::mm", "addmm", "bmm", "mkldnn_linear", "aten::linear"),
    "attention": ("attention", "flash"),
    "norms": ("norm", "rsqrt"),
    "activation functions": ("silu",),
    "softmax over options and vocabulary": ("softmax", "logsumexp", "nll"),
    "optimiser": ("adam", "foreach"),
    "drawing": ("random", "normal_", "bernoulli", "bitwise"),
    "copies, gathers and layouts": (
        "copy", "index", "gather", "scatter", "aten::cat", "clone", "contiguous", "select", "slice", "narrow", "fill", "zero",
        "embedding", "repeat", "expand", "view", "reshape", "transpose", "split", "empty", "as_strided", "pad",
    ),
    "sums and elementwise": ("aten::",),
}  # fmt: skip


def family(name: str) -> str:
    """Return the family of an operator."""
    lower = name.lower()
    return next((f for f, words in FAMILIES.items() if any(word in lower for word in words)), REST)


def shares(run: Callable[[], object]) -> dict[str, float]:
    """Return the self time of each family as a part of that of all of `run`, largest first.

    The time of the profiler itself is in `REST`.
    """
    with (
        torch.autograd.set_multithreading_enabled(False),
        profile(activities=[ProfilerActivity.CPU]) as found,
    ):
        run()
    spent: dict[str, float] = {}
    for event in found.key_averages():
        spent[family(event.key)] = spent.get(family(event.key), 0.0) + event.self_cpu_time_total
    total = sum(spent.values())
    return {f: spent[f] / total for f in sorted(spent, key=spent.__getitem__, reverse=True)}
