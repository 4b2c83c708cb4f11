"""The contract of a noise family.

A family is one object that says how a posterior becomes what an adapter adds to a layer's output.
It is registered in `families.py`. Every random number of a sample comes from the seed of that
sample, so the result of a row does not depend on the other rows of its batch.
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
    """G draws from one or more posteriors, for the rows of any number of batches."""

    def for_rows(
        self,
        sample_of_row: Sequence[int],
        row_tokens: Sequence[int],
        padding: Sequence[int] = (),
        step: int = 0,
    ) -> Draw:
        """Return the draw of a batch of packed rows.

        Row i has `row_tokens[i]` tokens and uses sample `sample_of_row[i]`. Where noise belongs to
        tokens, the first `padding[i]` tokens of row i have none, and tokens that are read in a
        later `step` have other noise than earlier ones.
        """

    def as_loras(self) -> Sequence[Lora]:
        """Return the samples as LoRA adapters, by site.

        Raises `SampleNotALoraError` where they are no LoRAs.
        """


class TrainingDraw(Draw, Protocol):
    """The draw of a gradient step: differentiable in the posterior, one sample a row."""

    def divergence(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return KL(phi || theta) and log p(theta), each [T] by task, in nats.

        The draw must have been made with a prior, and its forward pass must be done. Where the
        divergence is estimated, `seeds[t]` is the seed of task t.
        """


class NoiseFamily(Protocol):
    """One way in which a posterior is random. Holds no state."""

    name: str
    """The name of the family in configurations and files."""
    paired: bool
    """Whether samples 2k and 2k + 1 are antithetic (`seeds.sample_seeds`)."""
    divergence_of_tokens: bool
    """Whether a step's divergence is a sum over its batch's tokens, not one number for the task."""

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
        """Return one sample for each row.

        Row i belongs to task `task_of_row[i]` of `phi` [T, ...] and has the noise of `seeds[i]`.
        `prior` is theta [T or 1, ...]; it is given where the divergence from theta is needed.
        `dtype` is the dtype of the activations.
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
        """Return G samples for prediction.

        Sample g is drawn from task `task_of_sample[g]` of `tensors` [T, ...] with `seeds[g]`.
        `dtype` is the dtype of the activations that the samples will be applied to.
        """

    def sample_bytes(self, config: PosteriorConfig, sites: Sequence[Site], dtype: torch.dtype) -> int:
        """Return the bytes that one sample takes while it is used."""

    def weight_sd(self, config: PosteriorConfig, tensors: SiteTensors) -> Tensor | None:
        """Return the standard deviation of each weight [d_out, d_in] of a site.

        Returns None where the noise does not belong to the weights.
        """
