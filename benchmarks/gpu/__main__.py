"""Measure every figure of a GPU that this project wants to claim.

python -m benchmarks.gpu                          # eight minutes on one card
python -m benchmarks.gpu --device cpu --quick     # every section, tiny, without a card
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from functools import partial

import bitsandbytes as bnb
import torch

from benchmarks import common
from benchmarks.gpu.agreement import correctness
from benchmarks.gpu.experiments import graphs, rank_r
from benchmarks.gpu.report import Report, Section
from benchmarks.gpu.speed import memory, one_tenant, tenants
from benchmarks.gpu.subjects import QUICK, Sizes, Subject, makers
from model_store.pretrained.convert import compute_dtype

# Seconds for all sections. Libraries take the rest of the eight minutes to load.
SECONDS = 450.0
# Weights of the sections in time, and of the models: the larger a model, the longer a section.
SECTIONS = {
    "one tenant": (one_tenant, 0.2),
    "memory against the plan": (memory, 0.2),
    "many tenants": (tenants, 0.35),
    "rank-r products": (rank_r, 0.15),
}
LOADING, GRAPHS, CORRECTNESS = 0.15, 0.2, 0.4
MODELS = {"embedded": 0.8, "1B": 0.9, "8B": 3.0, "tiny": 1.0}


def main(argv: list[str] | None = None) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all sections together")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="all by default; `tiny` with --quick")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device; `--device cpu --quick` goes through every section without one")
    if options.device == "cpu" and not options.quick:
        parser.error("on the CPU only with --quick: this page is about a GPU")
    torch.set_num_threads(options.threads)
    sizes = QUICK if options.quick else Sizes(repeats=options.repeats)
    options.repeats = sizes.repeats
    report = measure(options, sizes)
    report.save(show=True)
    if report.failed:
        raise SystemExit("a section failed, or compared two things that differ: see the page")


def measure(options: argparse.Namespace, sizes: Sizes) -> Report:
    """Run every section.

    Graphs come last: a capture that fails may leave PyTorch's random numbers unusable.
    """
    found = makers(options, sizes)
    a_model = LOADING + GRAPHS + sum(weight for _, weight in SECTIONS.values())
    total = CORRECTNESS + sum(MODELS[name] * a_model for name in found)
    about = "Models of 1B and 8B are random weights of Llama's shapes: their times are real, their answers mean nothing."
    report = Report(
        options,
        options.seconds,
        "On a GPU",
        [device_line(options.device), about],
        compute_dtype(options.device),
    )
    report.run(
        "Correctness against the CPU",
        CORRECTNESS / total,
        lambda section: correctness(section, options, sizes),
    )
    subject = None
    for name, make in found.items():
        subject, share = None, MODELS[name] / total  # one model at a time is in memory
        subject = report.run(f"{name}: loading", LOADING * share, partial(loading, make=make))
        for title, (work, weight) in SECTIONS.items():
            report.run(f"{name}: {title}", weight * share, on(work, subject))
    for name, make in reversed(found.items()):
        share = GRAPHS * MODELS[name] / total / 2
        if name != next(reversed(found)):
            subject = None
            subject = report.run(f"{name}: loading again", share, partial(loading, make=make))
        report.run(f"{name}: CUDA graphs", share, on(graphs, subject))
    return report


def loading(section: Section, make: Callable[[], Subject]) -> Subject:
    """Make a model, once the memory of the one before is free."""
    free()
    subject = make()
    section.note(f"Computes in {str(subject.model.backbone.dtype).removeprefix('torch.')}.")
    return subject


def on(work: Callable[[Section, Subject], None], subject: Subject | None) -> Callable[[Section], None]:
    """Return the section of a model; it fails where the model is not there."""

    def run(section: Section) -> None:
        free()
        if subject is None:
            raise RuntimeError("its model was not loaded")
        work(section, subject)

    return run


def free() -> None:
    """Give back the memory of a card that nothing holds any more."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def device_line(device: str) -> str:
    """Return a sentence about the device."""
    if device == "cpu":
        return "**Without a card: this page says nothing about a GPU.** It shows that every section runs."
    card = torch.cuda.get_device_properties(0)
    return (
        f"{card.name}, {card.total_memory / 2**30:.0f} GiB, compute capability {card.major}.{card.minor}, "
        f"CUDA {torch.version.cuda}, bitsandbytes {bnb.__version__}."
    )


if __name__ == "__main__":
    main()
