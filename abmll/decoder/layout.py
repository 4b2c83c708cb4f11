"""Which linear layers of a decoder are adapted, and how their four LoRA matrices lie in one flat vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MODULES = ("q", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class AdapterLayout:
    """The LoRA adapters that a decoder gets: their rank, their scaling, and the layers that have one.

    `modules` are names of the rule in `decoder/sites.py`. Layers below `first_layer` are not adapted.
    """

    rank: int = 8
    alpha: float = 16.0
    modules: tuple[str, ...] = MODULES
    first_layer: int = 0

    @property
    def scaling(self) -> float:
        """s = alpha / rank, by which every product B A x is multiplied."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class Site:
    """One adapted linear layer: decoder layer index, module name of the rule, and the base weight's shape."""

    layer: int
    module: str
    d_in: int
    d_out: int

    @property
    def name(self) -> str:
        """A name that is stable across architectures, such as `layers.15.q`."""
        return f"layers.{self.layer}.{self.module}"


@dataclass(frozen=True)
class SiteTensors:
    """The four matrices of one site; with T tasks each has a leading dimension T. A: [r, d_in], B: [d_out, r]."""

    mean_a: Tensor
    mean_b: Tensor
    spread_a: Tensor
    spread_b: Tensor


def site_shapes(site: Site, rank: int) -> list[tuple[int, int]]:
    """Shapes of the four matrices in flat order."""
    pair = [(rank, site.d_in), (site.d_out, rank)]
    return pair + pair


def flat_size(sites: Sequence[Site], rank: int) -> int:
    """P, the number of values of one posterior."""
    return sum(a * b for site in sites for a, b in site_shapes(site, rank))


def unflatten(values: Tensor, sites: Sequence[Site], rank: int) -> list[SiteTensors]:
    """Views [..., rows, columns] by site of flat `values` [..., P]; differentiable with one backward node."""
    shapes = [shape for site in sites for shape in site_shapes(site, rank)]
    pieces = torch.split(values, [a * b for a, b in shapes], dim=-1)
    views = [piece.reshape(*piece.shape[:-1], *shape) for piece, shape in zip(pieces, shapes, strict=True)]
    return [SiteTensors(*views[i : i + 4]) for i in range(0, len(views), 4)]
