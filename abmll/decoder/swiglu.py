"""Gated product of an MLP, silu(gate) * up, in one pass over the data each way, on the CPU."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from abmll.decoder.architectures import is_like_llamas

# Classes of torch and of `transformers` that compute x * sigmoid(x).
SILU = ("SiLU", "SiLUActivation")
# Elements computed at a time. So few are still in the core's cache when the next operation reads
# them.
CHUNK = 32_768


def use_lean_swiglu(decoder: nn.Module) -> None:
    """Make SwiGLU MLPs of `decoder` on the CPU compute the same in fewer passes.

    Only decoders that are built like Llama have such MLPs (`is_like_llamas`).
    """
    for module in decoder.modules():
        weight = next(module.parameters(), None)
        if (
            is_like_llamas(module, "MLP")
            and type(module.act_fn).__name__ in SILU
            and weight is not None
            and weight.device.type == "cpu"
        ):
            module.forward = MethodType(_forward, module)


def _forward(module: Any, x: Tensor) -> Tensor:
    gated: Tensor = _Gated.apply(module.gate_proj(x), module.up_proj(x))  # type: ignore[no-untyped-call]
    out: Tensor = module.down_proj(gated)
    return out


class _Gated(torch.autograd.Function):
    """silu(gate) * up. Only the two inputs are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        for g, u, y in zip(*_chunks(gate, up, out), strict=True):
            torch.mul(silu(g), u, out=y)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        for g, u, d, d_g, d_u in zip(*_chunks(gate, up, gradients[0], d_gate, d_up), strict=True):
            s = torch.sigmoid(g)
            activated = g * s
            torch.mul(d, activated, out=d_u)
            # silu'(g) = s + silu(g) (1 - s)
            slope = activated.addcmul_(activated, s, value=-1).add_(s)
            torch.mul(d, u, out=d_g).mul_(slope)
        return d_gate, d_up


def _chunks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return [tensor.reshape(-1).split(CHUNK) for tensor in tensors]
