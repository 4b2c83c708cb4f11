"""Linear layers of a decoder that are adapted, and their four LoRA matrices in one flat vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MODULES = ("q", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class AdapterLayout:
    """Config of a decoder's LoRA adapters: their rank, their scaling, and the layers that have one.

    `modules` are names of the rule in `decoder/sites.py`. Layers below `first_layer` are not
    adapted.
    """

    rank: int = 8
    alpha: float = 16.0
    modules: tuple[str, ...] = MODULES
    first_layer: int = 0

    @property
    def scaling(self) -> float:
        """Return s = alpha / rank, the factor of every product B A x."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class Site:
    """Adapted linear layer: index of the decoder layer, module name of the rule, and sizes.

    The weight of the base is [d_out, d_in].
    """

    layer: int
    module: str
    d_in: int
    d_out: int

    @property
    def name(self) -> str:
        """Return a name that does not depend on the architecture, such as `layers.15.q`."""
        return f"layers.{self.layer}.{self.module}"


@dataclass(frozen=True)
class SiteTensors:
    """Four matrices of one site: A [r, d_in] and B [d_out, r], of the mean and of the spread.

    For T tasks, each has a leading dimension T.
    """

    mean_a: Tensor
    mean_b: Tensor
    spread_a: Tensor
    spread_b: Tensor


def site_shapes(site: Site, rank: int) -> list[tuple[int, int]]:
    """Return the shapes of the four matrices, in their order in the flat vector."""
    pair = [(rank, site.d_in), (site.d_out, rank)]
    return pair + pair


def flat_size(sites: Sequence[Site], rank: int) -> int:
    """Return P, the number of values of one posterior."""
    return sum(a * b for site in sites for a, b in site_shapes(site, rank))


def unflatten(values: Tensor, sites: Sequence[Site], rank: int) -> list[SiteTensors]:
    """Return the matrices [..., rows, columns] of every site, as views of flat `values` [..., P].

    The result is differentiable, with one node of the graph for all sites.
    """
    shapes = [shape for site in sites for shape in site_shapes(site, rank)]
    pieces = torch.split(values, [a * b for a, b in shapes], dim=-1)
    views = [piece.reshape(*piece.shape[:-1], *shape) for piece, shape in zip(pieces, shapes, strict=True)]
    return [SiteTensors(*views[i : i + 4]) for i in range(0, len(views), 4)]
