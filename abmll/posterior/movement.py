"""How far adaptation moved a posterior: KL and change of the mean (docs/method.md 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from abmll.decoder.layout import Site, SiteTensors
from abmll.errors import PosteriorMismatchError
from abmll.posterior.gaussians import gaussian_kl
from abmll.posterior.noise.families import family_of
from abmll.posterior.noise.weight import SD_FLOOR
from abmll.posterior.posteriors import Posterior

# Elements of a weight matrix that are computed at once; bounds memory.
ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Movement:
    """How far a task posterior is from the global one, over all `parameters` adapted weights.

    `kl_nats` is KL(q_phi || q_theta). `kl_nats_floored` is the same KL with no standard deviation
    below the constant c, so that weights with almost no noise do not dominate it. The KLs are None
    where the noise does not belong to the weights. `relative_mean_change` is the norm of the change
    of the mean update, divided by the norm of the global mean update; None where the latter is
    zero.
    """

    parameters: int
    kl_nats: float | None
    kl_nats_per_parameter: float | None
    kl_nats_floored: float | None
    relative_mean_change: float | None


def movement(task: Posterior, prior: Posterior) -> Movement:
    """Return how far `task` is from `prior`, both with the noise of prediction, computed in fp64.

    The KL of the `weight` family is the closed form of `noise.weight.weight_divergence`, summed
    over every element; no standard deviation is below `SD_FLOOR` in it. Where training brought a
    spread close to zero or changed its sign, a few elements dominate that sum. So a second sum has
    no standard deviation below c times the noise scale, which is what every element of an untrained
    posterior has. Raises `PosteriorMismatchError` where the two differ in layout, noise or sites.
    """
    config, of_prior = task.config, prior.config
    if (config.layout, config.noise, task.sites) != (of_prior.layout, of_prior.noise, prior.sites):
        raise PosteriorMismatchError("the posteriors have different configurations or sites")
    family, scaling = family_of(config.noise), config.layout.scaling
    kl = floored = change = length = 0.0
    of_weights = False
    floor = max(SD_FLOOR, config.noise.offset * config.noise.scale)
    for site, q_site, p_site in zip(task.sites, task.by_site(), prior.by_site(), strict=True):
        for q, p in zip(_slices(site, q_site), _slices(site, p_site), strict=True):
            mean_q, mean_p = scaling * q.mean_b @ q.mean_a, scaling * p.mean_b @ p.mean_a
            change += float((mean_q - mean_p).square().sum())
            length += float(mean_p.square().sum())
            sd_q, sd_p = family.weight_sd(config, q), family.weight_sd(config, p)
            if sd_q is not None and sd_p is not None:
                of_weights = True
                kl += _kl(mean_q, sd_q, mean_p, sd_p, SD_FLOOR)
                floored += _kl(mean_q, sd_q, mean_p, sd_p, floor)
    parameters = sum(site.d_in * site.d_out for site in task.sites)
    relative = math.sqrt(change / length) if length else None
    if not of_weights:
        return Movement(parameters, None, None, None, relative)
    return Movement(parameters, kl, kl / parameters, floored, relative)


def _kl(mean_q: Tensor, sd_q: Tensor, mean_p: Tensor, sd_p: Tensor, floor: float) -> float:
    log_var_q, log_var_p = (2 * sd.clamp_min(floor).log() for sd in (sd_q, sd_p))
    return float(gaussian_kl(mean_q, log_var_q, mean_p, log_var_p).sum())


def _slices(site: Site, tensors: SiteTensors) -> Iterator[SiteTensors]:
    """Yield the site's matrices in fp64, a block of output units at a time."""
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
