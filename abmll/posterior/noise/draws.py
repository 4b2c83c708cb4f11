"""Samples for prediction, of all sites or of the readout alone.

With `NoiseConfig.readout_scale`, every site but the readout has the posterior's mean in every
sample, and the readout has the noise of its own scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from abmll.decoder.backbone import Draw
from abmll.decoder.layout import Site, SiteTensors, unflatten
from abmll.decoder.rows import Rows
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.noise.contract import Samples
from abmll.posterior.noise.families import family_of
from abmll.posterior.noise.point import Lora, LoraSamples, mean_samples
from abmll.posterior.posteriors import Posterior
from abmll.seeds import SampleSeed


def means(config: PosteriorConfig, sites: Sequence[Site], values: Tensor) -> LoraSamples:
    """Return the means of T posteriors `values` [T, P] as T samples."""
    return mean_samples(config.layout, unflatten(values, sites, config.layout.rank))


def full_samples(
    config: PosteriorConfig,
    sites: Sequence[Site],
    values: Tensor,
    *,
    seeds: Sequence[SampleSeed],
    task_of_sample: Sequence[int],
    dtype: torch.dtype,
) -> Samples:
    """Return G samples of T posteriors `values` [T, P], with noise at every site.

    Sample g is drawn from posterior `task_of_sample[g]` with `seeds[g]`, for activations of
    `dtype`.
    """
    tensors = unflatten(values, sites, config.layout.rank)
    return family_of(config.noise).samples(
        config, sites, tensors, seeds=seeds, task_of_sample=task_of_sample, dtype=dtype
    )


def readout_noise(
    config: PosteriorConfig,
    sites: Sequence[Site],
    values: Tensor,
    *,
    seeds: Sequence[SampleSeed],
    dtype: torch.dtype,
) -> Lora:
    """Return what G samples add to the mean at the readout, of one posterior `values` [P].

    Raises `SampleNotALoraError` where samples of the noise family are no LoRAs, and `ValueError`
    where only full samples have noise.
    """
    if config.noise.readout_scale is None:
        raise ValueError("the noise is not that of the readout alone")
    *_, t = unflatten(values[None], sites, config.layout.rank)
    centred = SiteTensors(torch.zeros_like(t.mean_a), torch.zeros_like(t.mean_b), t.spread_a, t.spread_b)
    of_readout = replace(config, noise=replace(config.noise, scale=config.noise.readout_scale))
    samples = family_of(config.noise).samples(
        of_readout, sites[-1:], [centred], seeds=seeds, task_of_sample=[0] * len(seeds), dtype=dtype
    )
    (lora,) = samples.as_loras()
    return lora


def sampled_sites(config: PosteriorConfig, sites: Sequence[Site]) -> Sequence[Site]:
    """Return the sites that have noise in a sample."""
    return sites if config.noise.readout_scale is None else sites[-1:]


def mean_draw(posterior: Posterior, values: Tensor, rows: Rows) -> Draw:
    """Return the draw of rows by the mean of a posterior with `values` [P]."""
    found = means(posterior.config, posterior.sites, values.to(rows.input_ids.device)[None])
    return found.for_rows([0] * len(rows.lengths), rows.lengths)


def check_readout(config: PosteriorConfig, *, has_readout: bool) -> str | None:
    """Return what is wrong with noise in the readout alone, or None.

    `has_readout` is that of the backbone.
    """
    if config.noise.readout_scale is None:
        return None
    if not has_readout:
        return (
            "noise in the readout alone needs an adapted `down` in the last layer of a base that is built "
            "like Llama"
        )
    if config.noise.family != "weight":
        return f"noise in the readout alone needs the noise family 'weight', not {config.noise.family!r}"
    return None
