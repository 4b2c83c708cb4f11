"""A noise family that only this test registers adapts, predicts and is measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from abmll.adaptation.settings import AdaptSettings
from abmll.decoder.layout import Site, SiteTensors
from abmll.decoder.quantised import FrozenLinear
from abmll.errors import PosteriorMismatchError, SampleNotALoraError
from abmll.memory_plan import measure_costs
from abmll.model import FewShotModel
from abmll.posterior.config import NoiseConfig, PosteriorConfig
from abmll.posterior.movement import movement
from abmll.posterior.noise.families import FAMILIES, family_of
from abmll.posterior.noise.point import Lora
from abmll.posterior.plain_lora import sample_loras
from abmll.seeds import SampleSeed
from abmll.text.tasks import Example, Query


@dataclass(frozen=True)
class ShiftedDraw:
    """Adds the mean and, for a row with an odd seed, the constant c to every output."""

    config: PosteriorConfig
    tensors: Sequence[SiteTensors]
    task_of_row: Sequence[int]
    row_tokens: Sequence[int]
    seed_of_row: Sequence[int]

    def __call__(self, site: int, x: Tensor, layer: FrozenLinear) -> Tensor:
        t, scaling, shift = self.tensors[site], self.config.layout.scaling, self.config.noise.offset
        parts = zip(x.split(list(self.row_tokens)), self.task_of_row, self.seed_of_row, strict=True)
        added = [scaling * p @ t.mean_a[i].T @ t.mean_b[i].T + shift * (seed % 2) for p, i, seed in parts]
        out: Tensor = layer(x) + torch.cat(added)
        return out

    def narrowed(self, row_tokens: Sequence[int]) -> "ShiftedDraw":
        return replace(self, row_tokens=row_tokens)

    def divergence(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        squares = torch.stack([t.mean_b.flatten(1).square().sum(1) for t in self.tensors]).sum(0)
        return squares, torch.zeros_like(squares)


@dataclass(frozen=True)
class ShiftedSamples:
    config: PosteriorConfig
    tensors: Sequence[SiteTensors]
    task_of_sample: Sequence[int]
    seeds: Sequence[int]

    def for_rows(
        self,
        sample_of_row: Sequence[int],
        row_tokens: Sequence[int],
        padding: Sequence[int] = (),
        step: int = 0,
    ) -> ShiftedDraw:
        tasks = [self.task_of_sample[sample] for sample in sample_of_row]
        return ShiftedDraw(
            self.config, self.tensors, tasks, row_tokens, [self.seeds[sample] for sample in sample_of_row]
        )

    def as_loras(self) -> Sequence[Lora]:
        raise SampleNotALoraError("a shift of outputs is no LoRA")


class ShiftedNoise:
    """The mean, or the mean and a constant, each with probability one half."""

    name = "shifted"
    paired = False
    divergence_of_tokens = False

    def training_draw(
        self, config: PosteriorConfig, sites: Sequence[Site], phi: Sequence[SiteTensors], *, seeds: Sequence[int],
        task_of_row: Sequence[int], row_tokens: Sequence[int], dtype: torch.dtype,
        prior: Sequence[SiteTensors] | None = None,
    ) -> ShiftedDraw:  # fmt: skip
        return ShiftedDraw(config, phi, task_of_row, row_tokens, seeds)

    def samples(
        self, config: PosteriorConfig, sites: Sequence[Site], tensors: Sequence[SiteTensors], *,
        seeds: Sequence[SampleSeed], task_of_sample: Sequence[int], dtype: torch.dtype,
    ) -> ShiftedSamples:  # fmt: skip
        return ShiftedSamples(config, tensors, task_of_sample, [sample.seed for sample in seeds])

    def sample_bytes(self, config: PosteriorConfig, sites: Sequence[Site], dtype: torch.dtype) -> int:
        return 8

    def weight_sd(self, config: PosteriorConfig, tensors: SiteTensors) -> None:
        return None


@pytest.fixture
def model(make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> FewShotModel:
    monkeypatch.setitem(FAMILIES, "shifted", ShiftedNoise())
    made: FewShotModel = make_model(family="shifted", offset=0.3)
    return made


def test_a_third_family_adapts_and_predicts(model: FewShotModel, support: list[Example]) -> None:
    settings = AdaptSettings(steps=8, learning_rate=0.02, batch_size=4)
    free = model.adapt(support, settings, seed=1)
    assert free.losses[-1] < free.losses[0]
    held = model.adapt(support, replace(settings, beta=10.0), seed=1).posterior
    sizes = [sum(float(t.mean_b.square().sum()) for t in p.by_site()) for p in (free.posterior, held)]
    assert sizes[1] < sizes[0]  # the family's divergence pulls mean_b to zero
    queries = [Query("a dull film", support[0].options), Query("the capital?")]
    options, text = model.predict(free.posterior, queries, samples=6, seed=2, max_new_tokens=4)
    assert max(options.predictive.stds) > 0
    assert text.text is not None


def test_a_third_family_is_measured_and_has_no_weights(model: FewShotModel) -> None:
    assert measure_costs(model.backbone, model.prior).sample_bytes == 8
    assert movement(model.prior, model.prior).kl_nats is None
    with pytest.raises(SampleNotALoraError, match="shift"):
        sample_loras(model.prior, 0, 0)


def test_a_family_that_is_not_registered_is_refused(make_model: Callable[..., FewShotModel]) -> None:
    with pytest.raises(PosteriorMismatchError, match=r"shifted.*weight, output"):
        family_of(NoiseConfig("shifted"))
    with pytest.raises(PosteriorMismatchError, match="shifted"):
        make_model(family="shifted")
