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
from typing import Protocol

import torch
from torch import Tensor

from abmll.backbone import Draw
from abmll.lowrank import Segments, SignedLoras, add_loras, pick
from abmll.posterior import AdapterConfig, Site, SiteTensors, gaussian_kl, kl_one_sample, log_prior
from abmll.quantised import FrozenLinear
from abmll.ragged import Ragged, ragged
from abmll.seeds import SampleSeed, derive_seed

# sigma = s B_s A_s + c may come close to zero or change sign (the noise is symmetric); only the KL's logarithm needs a floor.
SD_FLOOR = 1e-6


class Samples(Protocol):
    """G draws from one or more posteriors, to be handed to the rows of as many batches as needed."""

    def for_rows(
        self,
        sample_of_row: Sequence[int],
        row_tokens: Sequence[int],
        padding: Sequence[int] = (),
        step: int = 0,
    ) -> Draw:
        """The draw of a batch of packed rows; row i has `row_tokens[i]` tokens and uses sample `sample_of_row[i]`.

        Where noise belongs to tokens, the first `padding[i]` of a row take none of it, and tokens that are read in a later
        `step` get other noise than those before.
        """


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters of one site: G of them, A [G, R, d_in] and B [G, d_out, R], already scaled."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class LoraDraw:
    """Adds B A x, where each row's tokens use their own adapter of the site's stack."""

    sites: Sequence[Lora]
    sample_of_row: Sequence[int]
    segments: Segments

    def __call__(self, site: int, x: Tensor, layer: FrozenLinear) -> Tensor:
        """See `Draw`."""
        lora = self.sites[site]
        return add_loras(x, layer, lora.a.to(x.dtype), lora.b.to(x.dtype), self.segments)

    def narrowed(self, row_tokens: Sequence[int]) -> LoraDraw:
        """See `Draw`."""
        return LoraSamples(self.sites).for_rows(self.sample_of_row, row_tokens)


@dataclass(frozen=True)
class LoraSamples:
    """Samples that are LoRA adapters: those of the `weight` family, and the mean of either."""

    loras: Sequence[Lora]

    def for_rows(
        self,
        sample_of_row: Sequence[int],
        row_tokens: Sequence[int],
        padding: Sequence[int] = (),
        step: int = 0,
    ) -> LoraDraw:
        """See `Samples`: the weights are the same for every token."""
        return LoraDraw(self.loras, sample_of_row, Segments.of(sample_of_row, row_tokens))


def mean_samples(config: AdapterConfig, tensors: Sequence[SiteTensors]) -> LoraSamples:
    """No noise: the means of T posteriors `tensors` [T, ...] as T samples, the same for both families."""
    return LoraSamples([Lora(t.mean_a, config.scaling * t.mean_b) for t in tensors])


# --- weight family ---------------------------------------------------------------------------------------------------


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


# --- output family ---------------------------------------------------------------------------------------------------


class OutputDraw:
    """Adds m + exp(l / 2) eps for each token; with `prior`, adds up KL(phi || theta) and log p(theta) by row [R], in nats.

    Row i takes task `task_of_row[i]` of `tensors` [T, ...] and its noise from the stream of `seed_of_row[i]` (no seeds: no
    noise); its first `padding[i]` tokens take none. `kl_estimator` is `closed` (no extra variance) or `sample` (the released
    code's log-ratio at the drawn value).
    """

    def __init__(
        self,
        config: AdapterConfig,
        tensors: Sequence[SiteTensors],
        task_of_row: Sequence[int],
        row_tokens: Sequence[int],
        seed_of_row: Sequence[int] = (),
        prior: Sequence[SiteTensors] | None = None,
        kl_estimator: str = "closed",
        padding: Sequence[int] = (),
    ) -> None:
        self.config, self.tensors, self.prior, self.kl_estimator = config, tensors, prior, kl_estimator
        self.kl = self.log_prior = torch.zeros(len(row_tokens), device=tensors[0].mean_a.device)
        self._tasks = Segments.of(task_of_row, row_tokens)
        self._row_tokens = tuple(row_tokens)
        self._padding = tuple(padding) or (0,) * len(self._row_tokens)
        self._streams = [torch.Generator().manual_seed(seed) for seed in seed_of_row]

    def __call__(self, site: int, x: Tensor, layer: FrozenLinear) -> Tensor:
        """See `Draw`; the addition is computed in fp32."""
        base: Tensor = layer(x)
        x = x.float()
        mean, log_var = self._moments(self.tensors[site], x)
        out = mean
        if self._streams:
            noise = torch.zeros(mean.shape)
            rows = zip(noise.split(self._row_tokens), self._streams, self._padding, strict=True)
            for row, stream, padding in rows:
                torch.randn(row[padding:].shape, generator=stream, out=row[padding:])
            out = mean + (log_var / 2).exp() * noise.to(mean.device)
        if self.prior is not None:
            prior = self._moments(self.prior[site], x)
            closed = self.kl_estimator == "closed"
            kl = gaussian_kl(mean, log_var, *prior) if closed else kl_one_sample(out, mean, log_var, *prior)
            self.kl = self.kl + self._by_row(kl)
            self.log_prior = self.log_prior + self._by_row(log_prior(*prior))
        return base + out.to(base.dtype)

    def narrowed(self, row_tokens: Sequence[int]) -> None:
        """See `Draw`: no; every token has noise and a share in the divergence, at every site."""

    def _by_row(self, values: Tensor) -> Tensor:
        return torch.stack([part.sum() for part in values.sum(-1).split(self._row_tokens)])

    def _moments(self, t: SiteTensors, x: Tensor) -> tuple[Tensor, Tensor]:
        scaling = self.config.scaling
        parts = list(zip(x.split(self._tasks.lengths), self._tasks.index, strict=True))
        mean = torch.cat([scaling * part @ t.mean_a[i].T @ t.mean_b[i].T for part, i in parts])
        log_var = torch.cat([scaling * part @ t.spread_a[i].T @ t.spread_b[i].T for part, i in parts])
        return mean, log_var + self.config.spread_offset + 2 * math.log(self.config.noise_scale)


@dataclass(frozen=True)
class OutputSamples:
    """Samples of the `output` family: a seed each, whose stream every row replays over its own tokens."""

    config: AdapterConfig
    tensors: Sequence[SiteTensors]
    task_of_sample: Sequence[int]
    seeds: Sequence[int]

    def for_rows(
        self,
        sample_of_row: Sequence[int],
        row_tokens: Sequence[int],
        padding: Sequence[int] = (),
        step: int = 0,
    ) -> OutputDraw:
        """See `Samples`."""
        tasks = [self.task_of_sample[sample] for sample in sample_of_row]
        seeds = [self.seeds[sample] for sample in sample_of_row]
        if step:
            seeds = [derive_seed(seed, "step", step) for seed in seeds]
        return OutputDraw(self.config, self.tensors, tasks, row_tokens, seeds, padding=padding)


# --- the contract both share -----------------------------------------------------------------------------------------


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
