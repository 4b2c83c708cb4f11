"""The readout: the last linear map of a decoder before its final norm.

It is the `down` projection of the last layer's MLP. What it reads does not depend on its own
weights. So posterior samples that differ only there share everything before it, and a sample costs
one low-rank product for each scored token, and the change of the token's log-probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from abmll.decoder.layout import Site
from abmll.decoder.quantised import FrozenLinear
from abmll.decoder.vocabulary import Normaliser


class _Adapters(Protocol):
    """What `Capture` wraps: a draw (`backbone.Draw`)."""

    def __call__(self, site: int, x: Tensor, layer: FrozenLinear) -> Tensor: ...

    def narrowed(self, row_tokens: Sequence[int]) -> _Adapters | None: ...


@dataclass
class Capture:
    """A draw that keeps what the readout reads.

    `readout` is the number of its site. `inputs` has what each run of the layer read.
    """

    draw: _Adapters
    readout: int
    inputs: list[Tensor]

    @property
    def all(self) -> Tensor:
        """Return what the readout read, [N, f]."""
        return self.inputs[0] if len(self.inputs) == 1 else torch.cat(self.inputs)

    def __call__(self, site: int, x: Tensor, layer: FrozenLinear) -> Tensor:
        """See `Draw`."""
        if site == self.readout:
            self.inputs.append(x)
        return self.draw(site, x, layer)

    def narrowed(self, row_tokens: Sequence[int]) -> Capture | None:
        """See `Draw`. Keeps its inputs in the same place."""
        narrowed = self.draw.narrowed(row_tokens)
        return None if narrowed is None else replace(self, draw=narrowed)


@dataclass(frozen=True)
class Readout:
    """What samples share, for P tokens whose next tokens are scored.

    `states` [P, d] lie before the final norm, and `inputs` [P, f] are what the readout read; both
    are under the mean. `normaliser` is that of the mean's logits.
    """

    states: Tensor
    inputs: Tensor
    normaliser: Normaliser

    def split(self, sizes: Sequence[int]) -> list[Readout]:
        """Return the parts with `sizes` tokens."""
        parts = zip(
            self.states.split(sizes), self.inputs.split(sizes), self.normaliser.split(sizes), strict=True
        )
        return [Readout(*part) for part in parts]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Readout:
        """Undo `split`."""
        return Readout(
            torch.cat([part.states for part in parts]),
            torch.cat([part.inputs for part in parts]),
            Normaliser.joined([part.normaliser for part in parts]),
        )


def is_readout(site: Site, depth: int) -> bool:
    """Return whether `site` is the readout of a decoder with `depth` layers."""
    return site.layer == depth - 1 and site.module == "down"
