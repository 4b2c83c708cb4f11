"""What a noise family is: one object that says how a posterior becomes what an adapter adds to a layer's output.

A family is registered in `families.py`. Every random number of a sample comes from the seed of that sample,
so the result of a row does not depend on the other rows of its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from abmll.decoder.backbone import Draw
from abmll.decoder.layout import Site, SiteTensors
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.noise.point import Lora
from abmll.seeds import SampleSeed


class Samples(Protocol):
    """G draws from one or more posteriors, to be handed to the rows of as many batches as needed."""

    def for_rows(
        self,
        sample_of_row: Sequence[int],
        row_tokens: Sequence[int],
        padding: Sequence[int] = (),
        step: int = 0,
    ) -> Draw:
        """Return the draw of a batch of packed rows: row i of `row_tokens[i]` tokens uses sample `sample_of_row[i]`.

        Where noise belongs to tokens, the first `padding[i]` tokens of row i take none of it, and tokens that
        are read in a later `step` get other noise than those before.
        """

    def as_loras(self) -> Sequence[Lora]:
        """Return the samples as LoRA adapters, by site. Raises `SampleNotALoraError` where they are none."""


class TrainingDraw(Draw, Protocol):
    """The draw of a gradient step: differentiable in the posterior, one sample a row."""

    def divergence(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return KL(phi || theta) and log p(theta), each [T] by task, in nats.

        Only for a draw that was made with a prior, after the forward pass that used the draw. Where the
        divergence is estimated, task t is estimated with `seeds[t]`.
        """


class NoiseFamily(Protocol):
    """One way in which a posterior is random. Holds no state."""

    name: str
    """What configurations and files call the family."""
    paired: bool
    """Whether samples 2k and 2k + 1 are antithetic (`seeds.sample_seeds`)."""
    divergence_of_tokens: bool
    """Whether the divergence of a step is a sum over the tokens of its batch, or one number for the task."""

    def training_draw(
        self,
        config: PosteriorConfig,
        sites: Sequence[Site],
        phi: Sequence[SiteTensors],
        *,
        seeds: Sequence[int],
        task_of_row: Sequence[int],
        row_tokens: Sequence[int],
        dtype: torch.dtype,
        prior: Sequence[SiteTensors] | None = None,
    ) -> TrainingDraw:
        """Return a sample for each row i, of task `task_of_row[i]` of `phi` [T, ...], with the noise of `seeds[i]`.

        `prior` is theta [T or 1, ...], where the divergence from it is asked for. `dtype` is that of activations.
        """

    def samples(
        self,
        config: PosteriorConfig,
        sites: Sequence[Site],
        tensors: Sequence[SiteTensors],
        *,
        seeds: Sequence[SampleSeed],
        task_of_sample: Sequence[int],
        dtype: torch.dtype,
    ) -> Samples:
        """Return G samples for prediction: sample g from task `task_of_sample[g]` of `tensors` [T, ...], by `seeds[g]`.

        `dtype` is that of the activations that the samples will be applied to.
        """

    def sample_bytes(self, config: PosteriorConfig, sites: Sequence[Site], dtype: torch.dtype) -> int:
        """Return the bytes that one sample takes while it is used."""

    def weight_sd(self, config: PosteriorConfig, tensors: SiteTensors) -> Tensor | None:
        """Return the standard deviation of each weight [d_out, d_in] of a site, or None where weights have none."""
