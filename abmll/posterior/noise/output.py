"""The `output` family: the adapter's output is Gaussian by token and unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.decoder.layout import SiteTensors
from abmll.decoder.low_rank import Segments
from abmll.decoder.quantised import FrozenLinear
from abmll.posterior.config import AdapterConfig
from abmll.posterior.gaussians import gaussian_kl, kl_one_sample, log_prior
from abmll.seeds import derive_seed


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
