"""The two noise families: how a posterior becomes what an adapter adds to a layer's output.

`weight` (the paper's equations): the weight update is Gaussian, mean s B_mu A_mu and standard deviation
s B_s A_s + c by element. One sample is drawn for a whole sequence as a sign-structured low-rank adapter, whose first two
moments are exactly the posterior's for all tokens jointly (docs/method.md 2), so every sample is an ordinary LoRA adapter
of rank r + m (r + 1).

`output` (the released code): the adapter's *output* is Gaussian by token and unit, mean s B_mu (A_mu x) and log-variance
s B_s (A_s x) + c. Redrawn for every token, it cannot be one set of weights.

Every random number of a sample comes from that sample's own seed, so a row's result does not depend on its batch mates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from abmll.decoder.layout import Site, SiteTensors
from abmll.decoder.low_rank import SignedLoras, pick
from abmll.decoder.quantised import FrozenLinear
from abmll.decoder.ragged import Ragged, ragged
from abmll.posterior.config import AdapterConfig
from abmll.posterior.gaussians import gaussian_kl, log_prior
from abmll.posterior.noise.point import Lora, LoraSamples

# sigma = s B_s A_s + c may come close to zero or change sign (the noise is symmetric); only the KL's logarithm needs a floor.
SD_FLOOR = 1e-6


def draw_signs(
    count: int,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`count` independent signs +-1 for each seed, [G, count]. Equal seeds give equal rows and are drawn once."""
    words = -(-count // 8)
    drawn: dict[int, Tensor] = {}
    for seed in seeds:
        if seed not in drawn:
            # Eight signs from each random byte: drawing is then a small part of building the adapter.
            generator = torch.Generator().manual_seed(seed)
            drawn[seed] = torch.randint(0, 256, (words,), dtype=torch.uint8, generator=generator)
    raw = torch.stack(list(drawn.values())).to(device)
    signs = ((raw[..., None] >> torch.arange(8, dtype=torch.uint8, device=device)) & 1).flatten(1)[:, :count]
    row_of = {seed: row for row, seed in enumerate(drawn)}
    rows = torch.tensor([row_of[seed] for seed in seeds], device=device)
    return signs[rows].to(dtype).mul_(2).sub_(1)


def sign_count(sites: Sequence[Site], noise_rank: int) -> int:
    """Signs of one sample: u_k and v_k of every site."""
    return noise_rank * sum(site.d_in + site.d_out for site in sites)


def split_signs(signs: Tensor, sites: Sequence[Site], noise_rank: int) -> list[tuple[Tensor, Tensor]]:
    """Views v [G, m, d_in] and u [G, m, d_out] by site of `signs` [G, count]."""
    sizes = [noise_rank * size for site in sites for size in (site.d_in, site.d_out)]
    pieces = [piece.unflatten(1, (noise_rank, -1)) for piece in torch.split(signs, sizes, dim=1)]
    return list(zip(pieces[::2], pieces[1::2], strict=True))


def weight_samples(
    config: AdapterConfig,
    sites: Sequence[Site],
    tensors: Sequence[SiteTensors],
    signs: Tensor,
    task_of_sample: Sequence[int],
    flips: Sequence[int] = (),
) -> LoraSamples:
    """G weight samples as LoRA adapters, sample g from task `task_of_sample[g]` of `tensors` [T, ...] with its `signs`.

    `flips` [G] of +-1 multiply the noise: a sample and its flip are an antithetic pair, mean +- the same deviation.
    The adapters have the dtype of `signs`: +-1 is exact in any, so casting before the product loses nothing by it.
    dW = s B_mu A_mu + m^-1/2 sum_k diag(u_k) [s B_s, 1] [A_s; c] diag(v_k), with u and v Rademacher.
    """
    m, scaling, rank, dtype = config.noise_rank, config.scaling, config.rank, signs.dtype
    noise_scaling = config.noise_scale / math.sqrt(m)
    flip = torch.tensor(flips or [1] * len(signs), dtype=dtype, device=signs.device)[:, None, None]
    task = torch.as_tensor(task_of_sample, device=signs.device)
    loras = []
    for site, t, (v, u) in zip(sites, tensors, split_signs(signs, sites, m), strict=True):
        offset_row = torch.full_like(t.spread_a[:, :1], config.spread_offset)
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
    """One weight sample for each row, differentiable in the posterior: the draw of adaptation.

    Rows of task t use `tensors` [T, ...] at t and the signs of their own seed, with one sign vector (m = 1).
    """

    config: AdapterConfig
    tensors: Sequence[SiteTensors]
    task_of_row: Tensor  # [R]
    signs: Sequence[tuple[Tensor, Tensor]]  # by site: v [R, 1, d_in] and u [R, 1, d_out]
    rows: Ragged

    def __call__(self, site: int, x: Tensor, layer: FrozenLinear) -> Tensor:
        """See `Draw`."""
        t, (v, u) = self.tensors[site], self.signs[site]
        ones = torch.full_like(t.spread_b[..., :1], self.config.noise_scale)
        offset_row = torch.full_like(t.spread_a[:, :1], self.config.spread_offset)
        scaling, dtype = self.config.scaling, x.dtype
        stacks = (
            t.mean_a,
            torch.cat([t.spread_a, offset_row], 1),
            (scaling * t.mean_b).mT.contiguous(),
            torch.cat([scaling * self.config.noise_scale * t.spread_b, ones], 2).mT.contiguous(),
        )
        cast = [stack.to(dtype) for stack in stacks]
        out: Tensor = SignedLoras.apply(x, layer, self.rows, self.task_of_row, v[:, 0], u[:, 0], *cast)  # type: ignore[no-untyped-call]
        return out

    def narrowed(self, row_tokens: Sequence[int]) -> SignedDraw:
        """See `Draw`."""
        return replace(self, rows=ragged(row_tokens, self.task_of_row.device))


def signed_draw(
    config: AdapterConfig,
    sites: Sequence[Site],
    tensors: Sequence[SiteTensors],
    *,
    seeds: Sequence[int],
    task_of_row: Sequence[int],
    row_tokens: Sequence[int],
    dtype: torch.dtype,
) -> SignedDraw:
    """A sample for each row i, of task `task_of_row[i]`, with the signs of `seeds[i]`.

    One sign vector has the exact moments of many (docs/method.md 2) at a fraction of the cost.
    """
    device = tensors[0].mean_a.device
    signs = draw_signs(sign_count(sites, 1), seeds, device, dtype)
    tasks = torch.tensor(task_of_row, device=device)
    return SignedDraw(config, tensors, tasks, split_signs(signs, sites, 1), ragged(row_tokens, device))


def weight_divergence(
    config: AdapterConfig, q: SiteTensors, p: SiteTensors, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """KL(q || p) and the log prior of p for one site's weight, in nats, summed over elements; leading dimensions [T] stay.

    With `rows` (output units) the sum over those rows is scaled up: unbiased for rows drawn uniformly, and cheaper than
    the d_out * d_in elements, of which sums of logarithms allow no low-rank shortcut.
    """
    scale = 1.0
    if rows is not None:
        scale = q.mean_b.shape[-2] / len(rows)
        q, p = (replace(t, mean_b=t.mean_b[..., rows, :], spread_b=t.spread_b[..., rows, :]) for t in (q, p))
    (mean_q, log_var_q), (mean_p, log_var_p) = (_weight_moments(config, t) for t in (q, p))
    kl = gaussian_kl(mean_q, log_var_q, mean_p, log_var_p)
    return kl.sum((-2, -1)) * scale, log_prior(mean_p, log_var_p).sum((-2, -1)) * scale


def _weight_moments(config: AdapterConfig, t: SiteTensors) -> tuple[Tensor, Tensor]:
    mean = config.scaling * t.mean_b @ t.mean_a
    sd = (config.scaling * t.spread_b @ t.spread_a + config.spread_offset) * config.noise_scale
    return mean, 2 * sd.abs().clamp_min(SD_FLOOR).log()
