"""The `weight` family (the paper's equations): Gaussian noise on the weights.

One sample serves a whole sequence. By element, the update has mean s B_mu A_mu and standard
deviation s B_s A_s + c. A sample is drawn as a sign-structured low-rank adapter. Its first two
moments are exactly the posterior's, for all tokens jointly (docs/method.md 2). So every sample is
an ordinary LoRA of rank r + m (r + 1).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from abmll.decoder.layout import Site, SiteTensors
from abmll.decoder.low_rank import SignedLoras, pick
from abmll.decoder.quantised import FrozenLinear
from abmll.decoder.ragged import Ragged, ragged
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.gaussians import gaussian_kl, log_prior
from abmll.posterior.noise.point import Lora, LoraSamples
from abmll.seeds import SampleSeed

# s B_s A_s + c may come close to zero or change its sign, as the noise is symmetric. Only the
# logarithm in the KL needs a floor.
SD_FLOOR = 1e-6
# Output rows of each weight matrix on which a step's KL is estimated (`weight_divergence`).
KL_ROWS = 16


def draw_signs(
    count: int,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return `count` independent signs +-1 for each seed, [G, count].

    Equal seeds give equal rows and are drawn once.
    """
    words = -(-count // 8)
    drawn: dict[int, Tensor] = {}
    for seed in seeds:
        if seed not in drawn:
            # Eight signs from each random byte make drawing a small part of building the adapter.
            generator = torch.Generator().manual_seed(seed)
            drawn[seed] = torch.randint(0, 256, (words,), dtype=torch.uint8, generator=generator)
    raw = torch.stack(list(drawn.values())).to(device)
    signs = ((raw[..., None] >> torch.arange(8, dtype=torch.uint8, device=device)) & 1).flatten(1)[:, :count]
    row_of = {seed: row for row, seed in enumerate(drawn)}
    rows = torch.tensor([row_of[seed] for seed in seeds], device=device)
    return signs[rows].to(dtype).mul_(2).sub_(1)


def sign_count(sites: Sequence[Site], noise_rank: int) -> int:
    """Return the number of signs of one sample: the u_k and v_k of every site."""
    return noise_rank * sum(site.d_in + site.d_out for site in sites)


def split_signs(signs: Tensor, sites: Sequence[Site], noise_rank: int) -> list[tuple[Tensor, Tensor]]:
    """Return views v [G, m, d_in] and u [G, m, d_out] by site of `signs` [G, count]."""
    sizes = [noise_rank * size for site in sites for size in (site.d_in, site.d_out)]
    pieces = [piece.unflatten(1, (noise_rank, -1)) for piece in torch.split(signs, sizes, dim=1)]
    return list(zip(pieces[::2], pieces[1::2], strict=True))


def weight_samples(
    config: PosteriorConfig,
    sites: Sequence[Site],
    tensors: Sequence[SiteTensors],
    signs: Tensor,
    task_of_sample: Sequence[int],
    flips: Sequence[int] = (),
) -> LoraSamples:
    """Return G weight samples as LoRA adapters.

    Sample g is drawn from task `task_of_sample[g]` of `tensors` [T, ...] with `signs[g]`. `flips`
    [G] of +-1 multiply the noise: a sample and its flip are an antithetic pair, mean +- the same
    deviation. The adapters have the dtype of `signs`: +-1 is exact in any dtype, so a cast before
    the product costs no precision. With Rademacher u and v:

    dW = s B_mu A_mu + m^-1/2 sum_k diag(u_k) [s B_s, 1] [A_s; c] diag(v_k).
    """
    m, scaling, rank, dtype = config.noise.rank, config.layout.scaling, config.layout.rank, signs.dtype
    noise_scaling = config.noise.scale / math.sqrt(m)
    flip = torch.tensor(flips or [1] * len(signs), dtype=dtype, device=signs.device)[:, None, None]
    task = torch.as_tensor(task_of_sample, device=signs.device)
    loras = []
    for site, t, (v, u) in zip(sites, tensors, split_signs(signs, sites, m), strict=True):
        offset_row = torch.full_like(t.spread_a[:, :1], config.noise.offset)
        ones = torch.full_like(t.spread_b[..., :1], noise_scaling)
        augmented_a = torch.cat([t.spread_a, offset_row], 1).to(dtype)  # [T, r + 1, d_in]
        augmented_b = torch.cat([scaling * noise_scaling * t.spread_b, ones], 2).to(
            dtype
        )  # [T, d_out, r + 1]
        a = signs.new_empty(len(signs), rank + m * (rank + 1), site.d_in)
        b = signs.new_empty(len(signs), site.d_out, rank + m * (rank + 1))
        a[:, :rank], b[:, :, :rank] = pick(t.mean_a, task), scaling * pick(t.mean_b, task)
        noise_a = a[:, rank:].unflatten(1, (m, rank + 1))
        noise_b = b[:, :, rank:].unflatten(2, (m, rank + 1))
        torch.mul(v[:, :, None], pick(augmented_a, task)[:, None], out=noise_a)
        torch.mul((u * flip).transpose(1, 2)[..., None], pick(augmented_b, task)[:, :, None], out=noise_b)
        loras.append(Lora(a, b))
    return LoraSamples(loras)


@dataclass(frozen=True)
class SignedDraw:
    """The draw of adaptation: one weight sample for each row, differentiable in the posterior.

    Row i uses task `task_of_row[i]` of `tensors` [T, ...] and the signs of its own seed, with one
    sign vector (m = 1). `prior` is theta; it is given where the divergence from theta is needed.
    """

    config: PosteriorConfig
    sites: Sequence[Site]
    tensors: Sequence[SiteTensors]
    task_of_row: Tensor  # [R]
    signs: Sequence[tuple[Tensor, Tensor]]  # by site: v [R, 1, d_in] and u [R, 1, d_out]
    rows: Ragged
    prior: Sequence[SiteTensors] | None = None

    def __call__(self, site: int, x: Tensor, layer: FrozenLinear) -> Tensor:
        """See `Draw`."""
        t, (v, u), noise = self.tensors[site], self.signs[site], self.config.noise
        ones = torch.full_like(t.spread_b[..., :1], noise.scale)
        offset_row = torch.full_like(t.spread_a[:, :1], noise.offset)
        scaling, dtype = self.config.layout.scaling, x.dtype
        stacks = (
            t.mean_a,
            torch.cat([t.spread_a, offset_row], 1),
            (scaling * t.mean_b).mT.contiguous(),
            torch.cat([scaling * noise.scale * t.spread_b, ones], 2).mT.contiguous(),
        )
        cast = [stack.to(dtype) for stack in stacks]
        out: Tensor = SignedLoras.apply(x, layer, self.rows, self.task_of_row, v[:, 0], u[:, 0], *cast)  # type: ignore[no-untyped-call]
        return out

    def narrowed(self, row_tokens: Sequence[int]) -> SignedDraw:
        """See `Draw`."""
        return replace(self, rows=ragged(row_tokens, self.task_of_row.device, self.signs[0][0].dtype))

    def divergence(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See `TrainingDraw`. An estimate on the output rows that `seeds[t]` chooses.

        Raises `ValueError` where the draw has no prior.
        """
        if self.prior is None:
            raise ValueError("the draw was made without a prior")
        by_task = [
            weight_divergences(self.config, self.sites, _one(self.tensors, t), _one(self.prior, t), seed)
            for t, seed in enumerate(seeds)
        ]
        kl, log_prior = (torch.cat(parts) for parts in zip(*by_task, strict=True))
        return kl, log_prior


def _one(tensors: Sequence[SiteTensors], task: int) -> list[SiteTensors]:
    """Return the matrices of one task, as [1, ...].

    Where `tensors` hold one task only (theta for every task), that one is returned.
    """
    i = min(task, len(tensors[0].mean_a) - 1)
    part = slice(i, i + 1)
    return [SiteTensors(t.mean_a[part], t.mean_b[part], t.spread_a[part], t.spread_b[part]) for t in tensors]


class WeightNoise:
    """The `weight` family. See `NoiseFamily`."""

    name = "weight"
    paired = True
    divergence_of_tokens = False

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
    ) -> SignedDraw:
        """See `NoiseFamily`. Draws one sign vector a row.

        It has the same exact moments as several (docs/method.md 2), at a fraction of the cost.
        """
        device = phi[0].mean_a.device
        signs = split_signs(draw_signs(sign_count(sites, 1), seeds, device, dtype), sites, 1)
        tasks = torch.tensor(task_of_row, device=device)
        return SignedDraw(config, sites, phi, tasks, signs, ragged(row_tokens, device, dtype), prior)

    def samples(
        self,
        config: PosteriorConfig,
        sites: Sequence[Site],
        tensors: Sequence[SiteTensors],
        *,
        seeds: Sequence[SampleSeed],
        task_of_sample: Sequence[int],
        dtype: torch.dtype,
    ) -> LoraSamples:
        """See `NoiseFamily`."""
        device, count = tensors[0].mean_a.device, sign_count(sites, config.noise.rank)
        signs = draw_signs(count, [sample.seed for sample in seeds], device, dtype)
        flips = [sample.flip for sample in seeds]
        return weight_samples(config, sites, tensors, signs, task_of_sample, flips)

    def sample_bytes(self, config: PosteriorConfig, sites: Sequence[Site], dtype: torch.dtype) -> int:
        """See `NoiseFamily`. Adapters of rank r + m (r + 1), and the signs they are made from."""
        rank, m = config.layout.rank, config.noise.rank
        width = rank + m * (rank + 1) + m
        return width * sum(site.d_in + site.d_out for site in sites) * dtype.itemsize

    def weight_sd(self, config: PosteriorConfig, tensors: SiteTensors) -> Tensor:
        """See `NoiseFamily`."""
        return weight_sd(config, tensors)


def weight_sd(config: PosteriorConfig, t: SiteTensors) -> Tensor:
    """Return the standard deviation [..., d_out, d_in] of each weight of a site."""
    spread = config.layout.scaling * t.spread_b @ t.spread_a + config.noise.offset
    return spread.abs() * config.noise.scale


def weight_divergences(
    config: PosteriorConfig,
    sites: Sequence[Site],
    q: Sequence[SiteTensors],
    p: Sequence[SiteTensors],
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return KL(q || p) and log p(p) of the `weight` family, each [T] in nats, over all sites.

    With a `seed`, both are estimates on `KL_ROWS` output rows of each weight matrix.
    """
    rng = random.Random(seed)  # noqa: S311 - a reproducible draw, not a secret
    kls, log_priors = [], []
    for site, q_site, p_site in zip(sites, q, p, strict=True):
        rows = None
        if seed is not None and site.d_out > KL_ROWS:
            rows = torch.tensor(rng.sample(range(site.d_out), KL_ROWS), device=q_site.mean_a.device)
        kl, log_prior = weight_divergence(config, q_site, p_site, rows)
        kls.append(kl)
        log_priors.append(log_prior)
    return torch.stack(kls).sum(0), torch.stack(log_priors).sum(0)


def weight_divergence(
    config: PosteriorConfig, q: SiteTensors, p: SiteTensors, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return KL(q || p) and the log prior of p for one site, in nats, summed over elements.

    Leading dimensions [T] stay. With `rows` (output units), the sum over those rows is scaled up.
    That is unbiased for rows drawn uniformly, and cheaper than the sum over all d_out * d_in
    elements, for which logarithms allow no low-rank shortcut.
    """
    scale = 1.0
    if rows is not None:
        scale = q.mean_b.shape[-2] / len(rows)
        q, p = (replace(t, mean_b=t.mean_b[..., rows, :], spread_b=t.spread_b[..., rows, :]) for t in (q, p))
    (mean_q, log_var_q), (mean_p, log_var_p) = (_weight_moments(config, t) for t in (q, p))
    kl = gaussian_kl(mean_q, log_var_q, mean_p, log_var_p)
    return kl.sum((-2, -1)) * scale, log_prior(mean_p, log_var_p).sum((-2, -1)) * scale


def _weight_moments(config: PosteriorConfig, t: SiteTensors) -> tuple[Tensor, Tensor]:
    mean = config.layout.scaling * t.mean_b @ t.mean_a
    return mean, 2 * weight_sd(config, t).clamp_min(SD_FLOOR).log()
