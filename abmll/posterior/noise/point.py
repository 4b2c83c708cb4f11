"""No noise: adapters that are plain LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.decoder.layout import AdapterLayout, SiteTensors
from abmll.decoder.low_rank import Segments, add_loras
from abmll.decoder.quantised import FrozenLinear


@dataclass(frozen=True)
class Lora:
    """G low-rank adapters of one site, scaled already: A [G, R, d_in] and B [G, d_out, R]."""

    a: Tensor
    b: Tensor

    def of(self, x: Tensor) -> Tensor:
        """Return B A x of every adapter, [G, N, d_out], for `x` [N, d_in]."""
        return (x.to(self.a.dtype) @ self.a.mT) @ self.b.mT

    def of_rows(self, x: Tensor, adapter: Tensor) -> Tensor:
        """Return B A x [N, d_out] for `x` [N, d_in], where row n has adapter `adapter[n]`."""
        inner = torch.bmm(self.a[adapter], x.to(self.a.dtype)[..., None])
        return torch.bmm(self.b[adapter], inner)[..., 0]


@dataclass(frozen=True)
class LoraDraw:
    """Adds B A x. Row i uses adapter `sample_of_row[i]` of each site."""

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
    """Samples that are LoRAs: those of the `weight` family, and the mean of every family."""

    loras: Sequence[Lora]

    def for_rows(
        self,
        sample_of_row: Sequence[int],
        row_tokens: Sequence[int],
        padding: Sequence[int] = (),
        step: int = 0,
    ) -> LoraDraw:
        """See `Samples`. The weights are the same for every token."""
        return LoraDraw(self.loras, sample_of_row, Segments.of(sample_of_row, row_tokens))

    def as_loras(self) -> Sequence[Lora]:
        """See `Samples`."""
        return self.loras


def mean_samples(layout: AdapterLayout, tensors: Sequence[SiteTensors]) -> LoraSamples:
    """Return the means of T posteriors `tensors` [T, ...] as T samples, for any noise family."""
    return LoraSamples([Lora(t.mean_a, layout.scaling * t.mean_b) for t in tensors])
