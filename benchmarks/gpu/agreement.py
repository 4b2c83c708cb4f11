"""Correctness: the answers of the device against those of the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from abmll.model import FewShotModel
from benchmarks import common
from benchmarks.gpu.report import Section
from benchmarks.gpu.subjects import READOUT_SCALE, Sizes, Subject
from benchmarks.readout import ALLOWED_NATS
from model_store.models import Start, build_model
from model_store.posteriors import load_posterior, shipped_posteriors
from model_store.pretrained.bases import load_base
from model_store.pretrained.catalogue import Dtype


def correctness(section: Section, options: Any, sizes: Sizes) -> None:
    """Compare an adaptation, and predictions of one adapter, on the device with those of the CPU.

    The CPU computes in fp32. The device does so too, and then in the dtype that it serves in.
    """
    on_card = options.device != "cpu"
    if not on_card:
        section.note("Needs a card: here both sides are the CPU.")
    reference = subject(options, sizes, "cpu", "float32")
    adapted = reference.model.adapt(reference.support(), seed=options.seed)
    asked = {
        "mean": (adapted.posterior, 0),
        "every site": (adapted.posterior, sizes.samples),
        "readout": (adapted.posterior.with_readout_scale(READOUT_SCALE), sizes.samples),
    }

    def answers(of: Subject) -> dict[str, list[list[float]]]:
        return {
            kind: common.probabilities(of.model.predict(phi, of.queries, samples=s, seed=options.seed))
            for kind, (phi, s) in asked.items()
        }

    expected = answers(reference)
    dtypes: tuple[Dtype | None, ...] = ("float32", None) if on_card else ("float32",)
    for dtype in dtypes:
        device = subject(options, sizes, options.device, dtype) if on_card else reference
        computed = device.model.backbone.dtype
        name = str(computed).removeprefix("torch.")
        losses = device.model.adapt(device.support(), seed=options.seed).losses
        gaps = [abs(a - b) for a, b in zip(losses, adapted.losses, strict=True)]
        section.compare(f"{name}, losses of the adaptation in nats", max(gaps), ALLOWED_NATS[computed])
        for kind, found in answers(device).items():
            difference = common.largest_difference(expected[kind], found)
            section.compare(f"{name}, probabilities, {kind}", difference, common.tolerance(computed))


def subject(options: Any, sizes: Sizes, device: str, dtype: Dtype | None) -> Subject:
    """Load the model of the posterior as a server does, computing in `dtype`."""
    model = load(options.posterior, device, dtype)
    model.defaults = replace(model.defaults, steps=sizes.steps or model.defaults.steps)
    return Subject("as served", model, lambda: None, sizes, options.seed)


def load(posterior: str | None, device: str, dtype: Dtype | None) -> FewShotModel:
    """Load the model of a posterior on `device`, by default in the dtype that suits it."""
    loaded = load_posterior(posterior or shipped_posteriors()[0])
    of = loaded.manifest.base
    base = load_base(of.id, quantisation=of.quantisation, device=device, dtype=dtype, progress=False)
    return build_model(base, Start.of(loaded), progress=False)
