"""Samples of whichever noise family a posterior has."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from abmll.decoder.layout import Site, SiteTensors
from abmll.posterior.config import AdapterConfig
from abmll.posterior.noise.contract import Samples
from abmll.posterior.noise.output import OutputSamples
from abmll.posterior.noise.weight import draw_signs, sign_count, weight_samples
from abmll.seeds import SampleSeed


def draw_samples(
    config: AdapterConfig,
    sites: Sequence[Site],
    tensors: Sequence[SiteTensors],
    *,
    seeds: Sequence[SampleSeed],
    task_of_sample: Sequence[int],
    dtype: torch.dtype,
) -> Samples:
    """G posterior samples, sample g from task `task_of_sample[g]` of `tensors` [T, ...] with the randomness of `seeds[g]`.

    `dtype` is that of the activations they will be applied to.
    """
    if config.noise == "output":
        return OutputSamples(config, tensors, task_of_sample, [sample.seed for sample in seeds])
    device, count = tensors[0].mean_a.device, sign_count(sites, config.noise_rank)
    signs = draw_signs(count, [sample.seed for sample in seeds], device, dtype)
    return weight_samples(config, sites, tensors, signs, task_of_sample, [sample.flip for sample in seeds])
