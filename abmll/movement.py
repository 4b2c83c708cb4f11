"""How far adaptation moved a posterior: KL and change of the mean, over the adapted weights (docs/method.md 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from abmll.diagnostics import Movement
from abmll.errors import PosteriorMismatchError
from abmll.noise import weight_divergence
from abmll.posterior import Posterior, Site, SiteTensors

# Elements of a weight matrix that are looked at together.
ELEMENTS = 1 << 20


def movement(task: Posterior, prior: Posterior) -> Movement:
    """From `prior` to `task`, both with the noise that they are served with, in fp64.

    The KL of the `weight` family is the closed form, summed over every element. Raises `PosteriorMismatchError` where the two
    are of different configurations or sites.
    """
    if (task.config, task.sites) != (prior.config, prior.sites):
        raise PosteriorMismatchError("the posteriors have different configurations or sites")
    config = task.config
    kl = change = length = 0.0
    for site, q_site, p_site in zip(task.sites, task.by_site(), prior.by_site(), strict=True):
        for q, p in zip(_slices(site, q_site), _slices(site, p_site), strict=True):
            if config.noise == "weight":
                kl += float(weight_divergence(config, q, p)[0])
            mean_p = config.scaling * p.mean_b @ p.mean_a
            change += float((config.scaling * q.mean_b @ q.mean_a - mean_p).square().sum())
            length += float(mean_p.square().sum())
    parameters = sum(site.d_in * site.d_out for site in task.sites)
    return Movement(
        parameters,
        kl if config.noise == "weight" else None,
        kl / parameters if config.noise == "weight" else None,
        math.sqrt(change / length) if length else None,
    )


def _slices(site: Site, tensors: SiteTensors) -> Iterator[SiteTensors]:
    """The site's matrices in fp64, for some output units at a time."""
    mean_a, spread_a = tensors.mean_a.double(), tensors.spread_a.double()
    step = max(1, ELEMENTS // site.d_in)
    for start in range(0, site.d_out, step):
        rows = slice(start, start + step)
        yield replace(
            tensors,
            mean_a=mean_a,
            spread_a=spread_a,
            mean_b=tensors.mean_b[rows].double(),
            spread_b=tensors.spread_b[rows].double(),
        )
