"""Posteriors as plain LoRA factors, the form that other software reads, and back.

The mean is a LoRA of rank r. A sample of the `weight` family is one of rank r + m (r + 1) (docs/method.md 2). A sample of the
`output` family is redrawn for every token, so it is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from abmll.decoder.layout import AdapterLayout, Site, unflatten
from abmll.errors import PosteriorMismatchError
from abmll.posterior.config import NoiseConfig
from abmll.posterior.noise.families import family_of
from abmll.posterior.posteriors import GlobalPosterior, Posterior
from abmll.seeds import sample_seeds


@dataclass(frozen=True)
class PlainLora:
    """Adds alpha / R * B A x to one linear layer's output: A [R, d_in] and B [d_out, R], in fp32."""

    a: Tensor
    b: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """R."""
        return self.a.shape[0]

    @property
    def scaling(self) -> float:
        """alpha / R."""
        return self.alpha / self.rank


def mean_loras(posterior: Posterior) -> dict[Site, PlainLora]:
    """The mean, of rank r: the same numbers that the posterior holds."""
    sites = zip(posterior.sites, posterior.by_site(), strict=True)
    return {site: PlainLora(t.mean_a, t.mean_b, posterior.config.layout.alpha) for site, t in sites}


def sample_loras(posterior: Posterior, seed: int, number: int) -> dict[Site, PlainLora]:
    """Sample `number` of the sequence that `seed` names, of rank r + m (r + 1) with scaling 1.

    It is the one that a prediction with this seed draws in fp32. Raises `SampleNotALoraError` where the samples of the noise
    family are none.
    """
    config, sites = posterior.config, posterior.sites
    family = family_of(config.noise)
    seeds = sample_seeds(seed, number, number + 1, paired=family.paired)
    tensors = unflatten(posterior.values.detach().cpu()[None], sites, config.layout.rank)
    samples = family.samples(config, sites, tensors, seeds=seeds, task_of_sample=[0], dtype=torch.float32)
    return {
        site: PlainLora(lora.a[0], lora.b[0], float(lora.a.shape[1]))
        for site, lora in zip(sites, samples.as_loras(), strict=True)
    }


def with_mean(prior: GlobalPosterior, loras: Mapping[Site, PlainLora]) -> GlobalPosterior:
    """`prior` with the mean given by `loras` and its own spread; sites without one get a mean of zero.

    A rank below r is filled up with columns of B that are zero, whose rows of A are an untrained posterior's, so that
    adaptation can use them. Raises `PosteriorMismatchError` for another site, another shape, or a larger rank.
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
    """The same mean in the `weight` family, every weight with this standard deviation: B_s zero, A_s as it was."""
    values = prior.values.clone()
    for tensors in unflatten(values, prior.sites, prior.config.layout.rank):
        tensors.spread_b.zero_()
    noise = NoiseConfig("weight", standard_deviation, prior.config.noise.rank)
    return replace(prior, config=replace(prior.config, noise=noise), values=values)


def layout_of(loras: Mapping[Site, PlainLora]) -> AdapterLayout:
    """The smallest layout that holds `loras`: their modules, from their first layer on, with their largest rank."""
    largest = max(loras.values(), key=lambda lora: lora.rank)
    return AdapterLayout(
        rank=largest.rank,
        alpha=largest.alpha,
        modules=tuple(sorted({site.module for site in loras})),
        first_layer=min(site.layer for site in loras),
    )
