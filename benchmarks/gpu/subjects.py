"""Models that are measured, with their inputs, and timing that waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from abmll.adaptation.settings import AdaptSettings
from abmll.decoder.layout import AdapterLayout
from abmll.model import FewShotModel
from abmll.posterior.config import PosteriorConfig
from abmll.text.tasks import Example, Query
from benchmarks import common
from benchmarks.memory_table import SHAPES
from benchmarks.scale_8b import Shape, build
from model_store.pretrained.bases import load_base
from model_store.pretrained.convert import compute_dtype, dequantise
from service.schemas import demo

LABELS = tuple(demo.OPTIONS)
# Scale of the noise in samples of the readout.
READOUT_SCALE = 6.0
TINY = Shape(2, 256, 512, 4, 2, 49_152)


@dataclass(frozen=True)
class Sizes:
    """How much is measured: examples of a task, inputs, samples, steps, numbers of tenants."""

    examples: int = 16
    inputs: int = 16
    samples: int = 16
    steps: int | None = None  # None: those of the posterior
    tenants: tuple[int, ...] = (1, 16, 64)
    repeats: int = 3


QUICK = Sizes(examples=2, inputs=2, samples=2, steps=1, tenants=(1, 2), repeats=1)


@dataclass
class Subject:
    """A model on a device.

    `dense` makes another copy of its base, for PEFT. With `random` weights, answers mean nothing.
    """

    name: str
    model: FewShotModel
    dense: Callable[[], Any]
    sizes: Sizes
    seed: int
    random: bool = False

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return self.model.backbone.device

    @property
    def on_card(self) -> bool:
        """Return whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def queries(self) -> list[Query]:
        """Return the inputs to predict."""
        texts = [*demo.INPUTS, *(text for text, _ in demo.SUPPORT)]
        return [Query(text, LABELS) for text in texts[: self.sizes.inputs]]

    def support(self, tenant: int = 0) -> list[Example]:
        """Return the examples of one tenant. Tenants have the same in another order."""
        at = tenant % len(demo.SUPPORT)
        turned = [*demo.SUPPORT[at:], *demo.SUPPORT[:at]]
        return [Example(text, label, LABELS) for text, label in turned[: self.sizes.examples]]

    def seconds(
        self, arms: Mapping[str, Callable[[], object]], repeats: int | None = None
    ) -> dict[str, float]:
        """Return the median seconds of each arm, warmed up once, until the device has ended."""

        def ended(run: Callable[[], object]) -> Callable[[], None]:
            def timed() -> None:
                run()
                if self.on_card:
                    torch.cuda.synchronize()

            return timed

        waiting = {name: ended(run) for name, run in arms.items()}
        for run in waiting.values():
            run()
        return common.medians(common.interleaved(waiting, repeats or self.sizes.repeats))


def embedded(posterior: str | None, sizes: Sizes, seed: int, device: str, threads: int) -> Subject:
    """Load the posterior with its base. Scores are of the adapter alone, as those of PEFT."""
    served = common.load_served(posterior, threads, total_scores=True, device=device)
    model = served.model
    model.defaults = replace(model.defaults, steps=sizes.steps or model.defaults.steps)
    return Subject("embedded base", model, lambda: common.load_dense(served.manifest, device), sizes, seed)


def random_nf4(name: str, shape: Shape, sizes: Sizes, seed: int, device: str) -> Subject:
    """Build a random model of a shape in NF4, adapted in its upper half from an untrained theta."""
    config = PosteriorConfig(AdapterLayout(first_layer=shape.layers // 2))
    settings = AdaptSettings(steps=sizes.steps or AdaptSettings().steps)
    model = FewShotModel(build(shape, seed, device), tokenizer(), config, defaults=settings)

    def dense() -> Any:
        base = build(shape, seed, device)
        if device == "cpu":  # where bitsandbytes has no gradient of 4-bit layers
            dequantise(base, compute_dtype(device))
        else:  # what PEFT chooses its layers by
            base.is_loaded_in_4bit = True
        return base

    return Subject(name, model, dense, sizes, seed, random=True)


@cache
def tokenizer() -> Any:
    """Return the tokenizer of the embedded base; its words are fewer than those of the shapes."""
    return load_base("smollm2-135m-instruct", progress=False).tokenizer


def makers(options: Any, sizes: Sizes) -> dict[str, Callable[[], Subject]]:
    """Return the function that makes each subject, by name."""
    shapes = {"tiny": TINY} if options.quick else {name: SHAPES[name] for name in ("1B", "8B")}
    found: dict[str, Callable[[], Subject]] = {
        "embedded": lambda: embedded(options.posterior, sizes, options.seed, options.device, options.threads)
    }
    for name, shape in shapes.items():
        found[name] = _maker(f"{name} in NF4", shape, sizes, options)
    return {name: make for name, make in found.items() if name in (options.models or found)}


def _maker(name: str, shape: Shape, sizes: Sizes, options: Any) -> Callable[[], Subject]:
    return lambda: random_nf4(name, shape, sizes, options.seed, options.device)
