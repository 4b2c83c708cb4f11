"""The optimiser of adaptation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class AdamW:
    """AdamW without weight decay (the paper's optimiser) for one flat tensor.

    Holds both moments and the number of steps, but not the values that it moves.
    """

    first: Tensor
    second: Tensor
    step: int = 0

    @classmethod
    def zeros_like(cls, values: Tensor) -> AdamW:
        """Return a fresh optimiser for `values`."""
        return cls(torch.zeros_like(values), torch.zeros_like(values))

    def update(self, values: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
        """Return `values` one step further down `gradient`.

        The constants are PyTorch's defaults: betas 0.9 and 0.999, epsilon 1e-8.
        """
        self.step += 1
        self.first.lerp_(gradient, 0.1)
        self.second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        scale = (self.second / (1 - 0.999**self.step)).sqrt_().add_(1e-8)
        return values.addcdiv(self.first, scale, value=-learning_rate / (1 - 0.9**self.step))
