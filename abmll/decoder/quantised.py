"""Dense weights of frozen linear layers, quantised or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_ONE_127TH = 7.874015718698502e-3


def is_quantised(layer: nn.Module) -> bool:
    """Return whether the layer is one of bitsandbytes."""
    return type(layer).__module__.startswith("bitsandbytes")


def dense_weight(layer: nn.Module) -> Tensor:
    """Return the weight [d_out, d_in]: the layer's own, or a bf16 copy of a quantised one.

    The layer must not have run by itself before: on the CPU, the first forward pass of a 4-bit
    layer repacks its weight.
    """
    weight: Any = layer.weight
    if not is_quantised(layer):
        plain: Tensor = weight
        return plain
    if getattr(weight, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415 - not needed for dense models

        dense: Tensor = dequantize_4bit(weight.data, weight.quant_state)
    else:
        # The same bits as the int8 dequantisation of bitsandbytes, without its slow product of int8
        # and float: 1 s instead of 2.9 s for the 210 layers of the embedded default.
        dense = weight.data.float().mul_(weight.SCB.view(-1, 1)).mul_(_ONE_127TH)
    return dense.to(torch.bfloat16)


class FrozenLinear(nn.Module):
    """Frozen linear layer.

    A quantised weight is made dense once for each pass over all rows, and dropped after it.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = int(base.in_features), int(base.out_features)  # type: ignore[arg-type]

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Return the dense weight [d_out, d_in]."""
        return dense_weight(self.base).to(dtype)

    @property
    def bias(self) -> Tensor | None:
        """Return the bias [d_out], or None."""
        bias: Tensor | None = self.base.bias  # type: ignore[assignment]
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + b."""
        if x.requires_grad and is_quantised(self.base):
            recomputed: Tensor = _Recomputed.apply(x, self)  # type: ignore[no-untyped-call]
            return recomputed
        return linear(x, self.weight(x.dtype), self.bias)


class _Recomputed(torch.autograd.Function):
    """Quantised layer whose dense weight is made again, not kept, for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        return linear(x, layer.weight(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ ctx.layer.weight(gradients[0].dtype), None
