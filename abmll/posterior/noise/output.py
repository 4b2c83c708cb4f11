"""The `output` family (the released code): Gaussian noise on the adapter's output.

Each token and unit has its own noise, with mean s B_mu (A_mu x) and log-variance s B_s (A_s x) + c.
As every token has new noise, a sample is no set of weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.decoder.layout import Site, SiteTensors
from abmll.decoder.low_rank import Segments
from abmll.decoder.quantised import FrozenLinear
from abmll.errors import SampleNotALoraError
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.gaussians import gaussian_kl, log_prior
from abmll.posterior.noise.point import Lora
from abmll.seeds import SampleSeed, derive_seed


class OutputDraw:
    """Adds m + exp(l / 2) eps for each token, where m is the mean and l the log-variance.

    Row i takes task `task_of_row[i]` of `tensors` [T, ...] and its noise from the stream of
    `seed_of_row[i]`; without seeds there is no noise. The first `padding[i]` tokens of row i have
    no noise. With a `prior`, the draw also sums KL(phi || theta) and log p(theta) by row [R], in
    nats.
    """

    def __init__(
        self,
        config: PosteriorConfig,
        tensors: Sequence[SiteTensors],
        task_of_row: Sequence[int],
        row_tokens: Sequence[int],
        seed_of_row: Sequence[int] = (),
        prior: Sequence[SiteTensors] | None = None,
        padding: Sequence[int] = (),
    ) -> None:
        self.config, self.tensors, self.prior = config, tensors, prior
        self.kl = self.log_prior = torch.zeros(len(row_tokens), device=tensors[0].mean_a.device)
        self._task_of_row, self._tasks = task_of_row, Segments.of(task_of_row, row_tokens)
        self._row_tokens = tuple(row_tokens)
        self._padding = tuple(padding) or (0,) * len(self._row_tokens)
        self._streams = [torch.Generator().manual_seed(seed) for seed in seed_of_row]

    def __call__(self, site: int, x: Tensor, layer: FrozenLinear) -> Tensor:
        """See `Draw`. Computes the addition in fp32."""
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
            self.kl = self.kl + self._by_row(gaussian_kl(mean, log_var, *prior))
            self.log_prior = self.log_prior + self._by_row(log_prior(*prior))
        return base + out.to(base.dtype)

    def narrowed(self, row_tokens: Sequence[int]) -> None:
        """See `Draw`. Returns None: each token has noise and a term of the divergence."""

    def divergence(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See `TrainingDraw`. The closed form needs no seed.

        It is summed over the tokens and units of each task's rows.
        """
        tasks = torch.tensor(self._task_of_row, device=self.kl.device)
        zeros = self.kl.new_zeros(len(self.tensors[0].mean_a))
        return zeros.index_add(0, tasks, self.kl), zeros.index_add(0, tasks, self.log_prior)

    def _by_row(self, values: Tensor) -> Tensor:
        return torch.stack([part.sum() for part in values.sum(-1).split(self._row_tokens)])

    def _moments(self, t: SiteTensors, x: Tensor) -> tuple[Tensor, Tensor]:
        scaling, noise = self.config.layout.scaling, self.config.noise
        parts = list(zip(x.split(self._tasks.lengths), self._tasks.index, strict=True))
        mean = torch.cat([scaling * part @ t.mean_a[i].T @ t.mean_b[i].T for part, i in parts])
        log_var = torch.cat([scaling * part @ t.spread_a[i].T @ t.spread_b[i].T for part, i in parts])
        return mean, log_var + noise.offset + 2 * math.log(noise.scale)


@dataclass(frozen=True)
class OutputSamples:
    """Samples of the `output` family.

    Sample g is `seeds[g]`: every row that uses it draws the noise of its own tokens from that seed.
    """

    config: PosteriorConfig
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

    def as_loras(self) -> Sequence[Lora]:
        """See `Samples`. Always raises."""
        raise SampleNotALoraError(
            "samples of the noise family `output` are redrawn for every token: only the mean is a LoRA"
        )


class OutputNoise:
    """The `output` family. See `NoiseFamily`."""

    name = "output"
    paired = False
    divergence_of_tokens = True

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
    ) -> OutputDraw:
        """See `NoiseFamily`."""
        return OutputDraw(config, phi, task_of_row, row_tokens, seeds, prior)

    def samples(
        self,
        config: PosteriorConfig,
        sites: Sequence[Site],
        tensors: Sequence[SiteTensors],
        *,
        seeds: Sequence[SampleSeed],
        task_of_sample: Sequence[int],
        dtype: torch.dtype,
    ) -> OutputSamples:
        """See `NoiseFamily`."""
        return OutputSamples(config, tensors, task_of_sample, [sample.seed for sample in seeds])

    def sample_bytes(self, config: PosteriorConfig, sites: Sequence[Site], dtype: torch.dtype) -> int:
        """See `NoiseFamily`. A sample holds no tensors of its own."""
        return 0

    def weight_sd(self, config: PosteriorConfig, tensors: SiteTensors) -> None:
        """See `NoiseFamily`. The noise belongs to outputs, not to weights."""
