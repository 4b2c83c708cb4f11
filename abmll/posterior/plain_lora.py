"""Posteriors as plain LoRA factors, which is the form that other software reads, and back.

The mean is a LoRA of rank r. A sample of the `weight` family is a LoRA of rank r + m (r + 1)
(docs/method.md 2). A sample of the `output` family has new noise for every token, so it is no LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from abmll.decoder.layout import AdapterLayout, Site, unflatten
from abmll.errors import PosteriorMismatchError
from abmll.posterior.config import NoiseConfig
from abmll.posterior.noise.draws import full_samples, means, readout_noise
from abmll.posterior.noise.families import family_of
from abmll.posterior.noise.point import Lora
from abmll.posterior.posteriors import GlobalPosterior, Posterior
from abmll.seeds import sample_seeds


@dataclass(frozen=True)
class PlainLora:
    """A LoRA of one linear layer: it adds alpha / R * B A x to the output.

    A is [R, d_in] and B is [d_out, R], both in fp32.
    """

    a: Tensor
    b: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Return R."""
        return self.a.shape[0]

    @property
    def scaling(self) -> float:
        """Return alpha / R."""
        return self.alpha / self.rank


def mean_loras(posterior: Posterior) -> dict[Site, PlainLora]:
    """Return the mean as LoRAs of rank r: the same numbers that the posterior holds."""
    sites = zip(posterior.sites, posterior.by_site(), strict=True)
    return {site: PlainLora(t.mean_a, t.mean_b, posterior.config.layout.alpha) for site, t in sites}


def sample_loras(posterior: Posterior, seed: int, number: int) -> dict[Site, PlainLora]:
    """Return sample `number` of the sequence that `seed` names, as LoRAs of rank r + m (r + 1).

    At sites without noise they are the mean, filled up with zeros: programs that read LoRAs expect
    one rank. Their scaling is 1. The sample is the one that a prediction with this seed draws in
    fp32. Raises `SampleNotALoraError` where samples of the noise family are no LoRAs.
    """
    config, sites = posterior.config, posterior.sites
    seeds = sample_seeds(seed, number, number + 1, paired=family_of(config.noise).paired)
    values = posterior.values.detach().cpu()[None]
    if config.noise.readout_scale is None:
        samples = full_samples(config, sites, values, seeds=seeds, task_of_sample=[0], dtype=torch.float32)
        loras = list(samples.as_loras())
    else:
        loras = list(means(config, sites, values).as_loras())
        noise = readout_noise(config, sites, values[0], seeds=seeds, dtype=torch.float32)
        loras[-1] = Lora(torch.cat([loras[-1].a, noise.a], 1), torch.cat([loras[-1].b, noise.b], 2))
    rank = max(lora.a.shape[1] for lora in loras)
    return {
        site: PlainLora(_filled(lora.a[0], 0, rank), _filled(lora.b[0], 1, rank), float(rank))
        for site, lora in zip(sites, loras, strict=True)
    }


def _filled(matrix: Tensor, axis: int, size: int) -> Tensor:
    """Return `matrix` with zeros behind it along `axis`, up to `size`."""
    shape = list(matrix.shape)
    shape[axis] = size - shape[axis]
    return torch.cat([matrix, matrix.new_zeros(shape)], axis)


def with_mean(prior: GlobalPosterior, loras: Mapping[Site, PlainLora]) -> GlobalPosterior:
    """Return `prior` with the mean that `loras` give, and with its own spread.

    A site without a LoRA gets a mean of zero. A rank below r is filled up so that adaptation can
    use the rest: the columns of B are zero, the rows of A are those of an untrained posterior.
    Raises `PosteriorMismatchError` for a site that is not adapted, another shape, or a larger rank.
    """
    config, sites = prior.config, prior.sites
    values = GlobalPosterior.untrained(config, sites).values
    if other := next((site for site in loras if site not in sites), None):
        raise PosteriorMismatchError(f"{other.name} is not adapted by the posterior")
    rank, scaling = config.layout.rank, config.layout.scaling
    for site, new, old in zip(sites, unflatten(values, sites, rank), prior.by_site(), strict=True):
        new.spread_a.copy_(old.spread_a)
        new.spread_b.copy_(old.spread_b)
        if (lora := loras.get(site)) is None:
            continue
        if lora.rank > rank:
            raise PosteriorMismatchError(
                f"{site.name} has rank {lora.rank}, more than the posterior's {rank}"
            )
        if (*lora.a.shape, *lora.b.shape) != (lora.rank, site.d_in, site.d_out, lora.rank):
            found = f"A {tuple(lora.a.shape)} and B {tuple(lora.b.shape)}"
            raise PosteriorMismatchError(
                f"{site.name} is a layer {site.d_in} -> {site.d_out}; {found} do not fit"
            )
        new.mean_a[: lora.rank] = lora.a
        new.mean_b[:, : lora.rank] = lora.b * (lora.scaling / scaling)
    return replace(prior, values=values)


def with_constant_spread(prior: GlobalPosterior, standard_deviation: float) -> GlobalPosterior:
    """Return the same mean in the `weight` family, with one standard deviation for all weights.

    B_s is zero, and A_s is unchanged.
    """
    values = prior.values.clone()
    for tensors in unflatten(values, prior.sites, prior.config.layout.rank):
        tensors.spread_b.zero_()
    noise = NoiseConfig("weight", standard_deviation, prior.config.noise.rank)
    return replace(prior, config=replace(prior.config, noise=noise), values=values)


def layout_of(loras: Mapping[Site, PlainLora]) -> AdapterLayout:
    """Return the smallest layout that holds `loras`.

    It has their modules, their first layer and their largest rank.
    """
    largest = max(loras.values(), key=lambda lora: lora.rank)
    return AdapterLayout(
        rank=largest.rank,
        alpha=largest.alpha,
        modules=tuple(sorted({site.module for site in loras})),
        first_layer=min(site.layer for site in loras),
    )
