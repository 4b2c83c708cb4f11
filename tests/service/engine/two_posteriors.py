"""A tiny base on disk with two posteriors that have nothing in common, and engines that serve them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from transformers import AutoModelForCausalLM

from abmll.adaptation.settings import AdaptSettings
from abmll.model import FewShotModel
from abmll.posterior.config import PosteriorConfig, TemperatureRule
from abmll.posterior.posteriors import GlobalPosterior
from abmll.similarity.gaussian_process import SimilarityConfig
from abmll.text.prompting import PromptTemplate
from model_store.posteriors import PosteriorManifest, save_posterior
from model_store.pretrained.bases import load_base
from service.engine.build import build_engine
from service.engine.engine import Engine
from service.executors.build import build_executor
from service.metrics import Metrics
from service.settings import Settings
from tests.tiny import CONFIGS, make_config, tiny_tokenizer

T = TypeVar("T")
OLD = make_config(
    rank=4, first_layer=1, offset=0.05, similarity=SimilarityConfig(), temperature=TemperatureRule(8.0)
)
NEW = make_config(
    rank=2, first_layer=2, offset=0.02, modules=("q", "down"), temperature=TemperatureRule(12.0)
)


@dataclass(frozen=True)
class Place:
    """Folders of a base and of its two posteriors, and a root for what else is written."""

    base: Path
    old: Path
    new: Path
    root: Path

    def settings(self, posterior: Path, *also: Path, data: str = "data", **more: Any) -> Settings:
        """Return settings that serve `posterior` by default, and `also` others."""
        return Settings(
            model=str(self.base), quantisation="none", cache_dir=self.root / "cache", threads=1,
            data_dir=self.root / data, posterior=str(posterior), memory_bytes=1 << 30,
            also_posteriors=",".join(map(str, also)) or None, **more,
        )  # fmt: skip


def make_place(root: Path) -> Place:
    folder = root / "tiny-llama"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS["llama"](), dtype=torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    old = _posterior(root, folder, "old", OLD, " ->", AdaptSettings(steps=3, learning_rate=0.01))
    new = _posterior(root, folder, "new", NEW, "\nLabel:", AdaptSettings(steps=2, learning_rate=0.02))
    return Place(folder, old, new, root)


def _posterior(
    root: Path, folder: Path, id: str, config: PosteriorConfig, after_input: str, adapt: AdaptSettings
) -> Path:
    base = load_base(str(folder), quantisation="none", cache_dir=root / "cache", progress=False)
    untrained = FewShotModel(base.model, base.tokenizer, config).prior
    noise = 0.1 * torch.randn(
        untrained.values.shape, generator=torch.Generator().manual_seed(len(untrained.sites))
    )
    prior = GlobalPosterior(config, untrained.sites, untrained.values + noise)
    manifest = PosteriorManifest.of(
        prior, id=id, base=base.identity, adapt=asdict(adapt), training={}, metrics={},
        template=PromptTemplate(after_input=after_input).to_json(),
    )  # fmt: skip
    save_posterior(root / id, prior, manifest)
    return root / id


def with_engine(
    settings: Settings,
    work: Callable[[Engine], Awaitable[T]],
    kind: Literal["inline", "process"] = "inline",
) -> T:
    """Return what `work` does with an engine of these settings."""

    async def run() -> T:
        metrics = Metrics()
        engine = build_engine(settings, build_executor(settings, metrics, kind), metrics)
        try:
            await engine.start()
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(run())
