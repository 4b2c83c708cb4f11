"""Samples for prediction: noise in some layers, the mean in those below.

Layers below `PosteriorConfig.sampled_from` have the posterior's mean in every sample. So all
samples share the activations up to there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from abmll.decoder.layout import Site, SiteTensors, unflatten
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.noise.contract import Samples
from abmll.posterior.noise.families import family_of
from abmll.posterior.noise.point import LoraSamples, mean_samples
from abmll.seeds import SampleSeed


def shared_mean(config: PosteriorConfig, sites: Sequence[Site], values: Tensor) -> LoraSamples:
    """Return the means of T posteriors `values` [T, P] at the sites that all samples share.

    `sites` are all sites of the posteriors.
    """
    count = shared_sites(config, sites)
    return mean_samples(config.layout, _tensors(config, sites, values)[:count])


def own_mean(config: PosteriorConfig, sites: Sequence[Site], values: Tensor) -> LoraSamples:
    """Return the means of T posteriors `values` [T, P] at the sites that have noise in a sample."""
    count = shared_sites(config, sites)
    return mean_samples(config.layout, _tensors(config, sites, values)[count:])


def own_samples(
    config: PosteriorConfig,
    sites: Sequence[Site],
    values: Tensor,
    *,
    seeds: Sequence[SampleSeed],
    task_of_sample: Sequence[int],
    dtype: torch.dtype,
) -> Samples:
    """Return G samples of T posteriors `values` [T, P] at the sites that have noise.

    Sample g is drawn from posterior `task_of_sample[g]` with `seeds[g]`, for activations of
    `dtype`. `sites` are all sites of the posteriors.
    """
    count = shared_sites(config, sites)
    return family_of(config.noise).samples(
        config,
        sites[count:],
        _tensors(config, sites, values)[count:],
        seeds=seeds,
        task_of_sample=task_of_sample,
        dtype=dtype,
    )


def shared_sites(config: PosteriorConfig, sites: Sequence[Site]) -> int:
    """Return the number of sites that have the mean in every sample. They are the first ones."""
    return sum(site.layer < config.sampled_from for site in sites)


def _tensors(config: PosteriorConfig, sites: Sequence[Site], values: Tensor) -> list[SiteTensors]:
    return unflatten(values, sites, config.layout.rank)
