"""The two noise families: how a posterior becomes what an adapter adds to a layer's output.

`weight` (the paper's equations): the weight update is Gaussian, mean s B_mu A_mu and standard deviation
s B_s A_s + c by element. One sample is drawn for a whole sequence as a sign-structured low-rank adapter, whose first two
moments are exactly the posterior's for all tokens jointly (docs/method.md 2), so every sample is an ordinary LoRA adapter
of rank r + m (r + 1).

`output` (the released code): the adapter's *output* is Gaussian by token and unit, mean s B_mu (A_mu x) and log-variance
s B_s (A_s x) + c. Redrawn for every token, it cannot be one set of weights.

Every random number of a row comes from that row's own seed, so a row's result does not depend on its batch mates.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from abmll.backbone import Draw
from abmll.posterior import AdapterConfig, Site, SiteTensors, gaussian_kl, kl_one_sample, log_prior

# sigma = s B_s A_s + c may come close to zero or change sign (the noise is symmetric); only the KL's logarithm needs a floor.
SD_FLOOR = 1e-6


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters of one site: G of them, A [G, R, d_in] and B [G, d_out, R], already scaled."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class LoraDraw:
    """Adds B A x, where row i of the batch uses adapter `index[i]` of each site's stack."""

    sites: Sequence[Lora]
    index: Tensor  # [R] int64

    def __call__(self, site: int, x: Tensor) -> Tensor:
        """The addition [R, L, d_out] for `x` [R, L, d_in], in the dtype of `x`."""
        a, b = self.sites[site].a.to(x.dtype), self.sites[site].b.to(x.dtype)
        if len(a) == 1:
            return (x @ a[0].T) @ b[0].T
        if self._in_blocks:  # equal runs of rows share an adapter: one product each, nothing gathered
            return torch.bmm(torch.bmm(x.reshape(len(a), -1, x.shape[-1]), a.mT), b.mT).view(*x.shape[:2], -1)
        return torch.bmm(torch.bmm(x, a[self.index].mT), b[self.index].mT)

    @cached_property
    def _in_blocks(self) -> bool:
        groups = len(self.sites[0].a)
        if len(self.index) % groups:
            return False
        runs = torch.arange(groups, device=self.index.device).repeat_interleave(len(self.index) // groups)
        return torch.equal(self.index, runs)


class Samples(Protocol):
    """G draws from one or more posteriors, to be handed to the rows of as many batches as needed."""

    def for_rows(self, sample_of_row: Tensor, valid: Tensor) -> Draw:
        """The draw of a batch whose row i [R] uses sample `sample_of_row[i]`; `valid` [R, L] marks its real tokens."""


@dataclass(frozen=True)
class LoraSamples:
    """Samples that are LoRA adapters: those of the `weight` family, and the mean of either."""

    loras: Sequence[Lora]

    def for_rows(self, sample_of_row: Tensor, valid: Tensor) -> LoraDraw:
        """See `Samples`."""
        return LoraDraw(self.loras, sample_of_row)


def mean_samples(config: AdapterConfig, tensors: Sequence[SiteTensors]) -> LoraSamples:
    """No noise: the means of T posteriors `tensors` [T, ...] as T samples, the same for both families."""
    return LoraSamples([Lora(t.mean_a, config.scaling * t.mean_b) for t in tensors])


# --- weight family ---------------------------------------------------------------------------------------------------


def draw_signs(
    config: AdapterConfig,
    sites: Sequence[Site],
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Signs [G, sum over sites of m (d_in + d_out)] of +-1, one independent row for each seed."""
    count = config.noise_rank * sum(site.d_in + site.d_out for site in sites)
    words = -(-count // 8)
    out = torch.empty(len(seeds), count, dtype=dtype)
    bits = torch.arange(8, dtype=torch.uint8)
    for row, seed in zip(out, seeds, strict=True):
        # Eight signs from each random byte: drawing is then a small part of building the adapter.
        raw = torch.randint(
            0, 256, (words,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
        )
        row.copy_(((raw[:, None] >> bits) & 1).flatten()[:count]).mul_(2).sub_(1)
    return out.to(device)


def weight_samples(
    config: AdapterConfig,
    sites: Sequence[Site],
    tensors: Sequence[SiteTensors],
    signs: Tensor,
    task_of_sample: Tensor,
) -> LoraSamples:
    """G weight samples as LoRA adapters, sample g from task `task_of_sample[g]` of `tensors` [T, ...] with its `signs`.

    The adapters have the dtype of `signs`: +-1 is exact in any, so casting before the product loses nothing by it.
    dW = s B_mu A_mu + m^-1/2 sum_k diag(u_k) [s B_s, 1] [A_s; c] diag(v_k), with u and v Rademacher.
    """
    m, scaling = config.noise_rank, config.scaling
    pieces = iter(torch.split(signs, [m * size for site in sites for size in (site.d_in, site.d_out)], dim=1))
    loras = []
    for site, t in zip(sites, tensors, strict=True):
        v = next(pieces).reshape(-1, m, 1, site.d_in)
        u = next(pieces).reshape(-1, m, site.d_out, 1)
        noise_scaling = config.noise_scale / math.sqrt(m)
        offset_row = torch.full_like(t.spread_a[:, :1], config.spread_offset)
        ones = torch.full_like(t.spread_b[..., :1], noise_scaling)
        augmented_a = torch.cat([t.spread_a, offset_row], 1).to(signs.dtype)  # [T, r + 1, d_in]
        augmented_b = torch.cat([scaling * noise_scaling * t.spread_b, ones], 2).to(
            signs.dtype
        )  # [T, d_out, r + 1]
        mean_a, mean_b = t.mean_a.to(signs.dtype), (scaling * t.mean_b).to(signs.dtype)
        noise_a = (v * _pick(augmented_a, task_of_sample)[:, None]).flatten(1, 2)  # [G, m (r + 1), d_in]
        noise_b = (u * _pick(augmented_b, task_of_sample)[:, None]).transpose(1, 2).flatten(2)
        a = torch.cat([_pick(mean_a, task_of_sample), noise_a], 1)
        loras.append(Lora(a, torch.cat([_pick(mean_b, task_of_sample), noise_b], 2)))
    return LoraSamples(loras)


def _pick(tensors: Tensor, index: Tensor) -> Tensor:
    """`tensors[index]`, without a copy where there is only one."""
    return tensors.expand(len(index), *tensors.shape[1:]) if len(tensors) == 1 else tensors[index]


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


# --- output family ---------------------------------------------------------------------------------------------------


@dataclass
class OutputDraw:
    """Adds m + exp(l / 2) eps for each token; with `prior`, adds up KL(phi || theta) and log p(theta) by row [R], in nats.

    Row i takes task `task_of_row[i]` of `tensors` [T, ...] and its noise from the stream of `seed_of_row[i]` (no seeds: no
    noise). `valid` [R, L] marks real tokens: noise and KL cover only them. `kl_estimator` is `closed` (no extra
    variance) or `sample` (the released code's log-ratio at the drawn value).
    """

    config: AdapterConfig
    tensors: Sequence[SiteTensors]
    task_of_row: Tensor
    valid: Tensor
    seed_of_row: Sequence[int] = ()
    prior: Sequence[SiteTensors] | None = None
    kl_estimator: str = "closed"
    kl: Tensor | float = 0.0
    log_prior: Tensor | float = 0.0

    def __post_init__(self) -> None:
        self._streams = [torch.Generator().manual_seed(seed) for seed in self.seed_of_row]

    def __call__(self, site: int, x: Tensor) -> Tensor:
        """The addition [R, L, d_out] for `x` [R, L, d_in], in fp32."""
        x = x.float()
        mean, log_var = self._moments(self.tensors[site], x)
        out = mean
        if self._streams:
            eps = torch.zeros_like(mean)
            for row, stream in enumerate(self._streams):
                drawn = torch.randn(int(self.valid[row].sum()), mean.shape[-1], generator=stream)
                eps[row, self.valid[row]] = drawn.to(eps.device)
            out = mean + (log_var / 2).exp() * eps
        if self.prior is not None:
            prior = self._moments(self.prior[site], x)
            closed = self.kl_estimator == "closed"
            kl = gaussian_kl(mean, log_var, *prior) if closed else kl_one_sample(out, mean, log_var, *prior)
            self.kl = self.kl + (kl.sum(-1) * self.valid).sum(-1)
            self.log_prior = self.log_prior + (log_prior(*prior).sum(-1) * self.valid).sum(-1)
        return out

    def _moments(self, t: SiteTensors, x: Tensor) -> tuple[Tensor, Tensor]:
        pick, scaling = self.task_of_row, self.config.scaling
        mean = scaling * x @ t.mean_a[pick].mT @ t.mean_b[pick].mT
        log_var = scaling * x @ t.spread_a[pick].mT @ t.spread_b[pick].mT + self.config.spread_offset
        return mean, log_var + 2 * math.log(self.config.noise_scale)


@dataclass(frozen=True)
class OutputSamples:
    """Samples of the `output` family: a seed each, whose stream every row replays over its own tokens."""

    config: AdapterConfig
    tensors: Sequence[SiteTensors]
    task_of_sample: Tensor
    seeds: Sequence[int]

    def for_rows(self, sample_of_row: Tensor, valid: Tensor) -> OutputDraw:
        """See `Samples`."""
        seeds = [self.seeds[sample] for sample in sample_of_row.tolist()]
        return OutputDraw(self.config, self.tensors, self.task_of_sample[sample_of_row], valid, seeds)


# --- the contract both share -----------------------------------------------------------------------------------------


def draw_samples(
    config: AdapterConfig,
    sites: Sequence[Site],
    tensors: Sequence[SiteTensors],
    *,
    seeds: Sequence[int],
    task_of_sample: Tensor,
    dtype: torch.dtype,
) -> Samples:
    """G posterior samples, sample g from task `task_of_sample[g]` of `tensors` [T, ...] with the randomness of `seeds[g]`.

    `dtype` is that of the activations they will be applied to.
    """
    if config.noise == "weight":
        signs = draw_signs(config, sites, seeds, task_of_sample.device, dtype)
        return weight_samples(config, sites, tensors, signs, task_of_sample)
    return OutputSamples(config, tensors, task_of_sample, seeds)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on all parts and on nothing else."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
