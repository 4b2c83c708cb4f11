"""SwiGLU in chunks against autograd through the plain formula, over more than one chunk."""

import torch
from torch.nn.functional import silu

from abmll.decoder.swiglu import CHUNK, _Gated


def test_value_and_gradients_are_those_of_the_formula() -> None:
    g = torch.Generator().manual_seed(0)
    gate, up = (torch.randn(1, 3, CHUNK // 2, generator=g, requires_grad=True) for _ in range(2))
    weight = torch.randn(1, 3, CHUNK // 2, generator=g)
    found = [
        (y, *torch.autograd.grad((y * weight).sum(), (gate, up)))
        for y in (_Gated.apply(gate, up), silu(gate) * up)
    ]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
