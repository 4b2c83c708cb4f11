"""SwiGLU in chunks against autograd through the plain formula, over more than one chunk."""

import pytest
import torch
import transformers
from torch.nn.functional import silu

from abmll.decoder.architectures import LIKE_LLAMA
from abmll.decoder.norms import use_lean_norms
from abmll.decoder.swiglu import CHUNK, _Gated, use_lean_swiglu
from tests.tiny import CONFIGS


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


@pytest.mark.parametrize("architecture", [name for name in CONFIGS if name.title() in LIKE_LLAMA])
def test_decoders_like_llamas_use_our_own_norms_and_products(architecture: str) -> None:
    """A class of another name for the same function left the products to `transformers` before."""
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[architecture]())
    tokens = torch.arange(6)[None]
    expected = model(tokens).logits
    use_lean_norms(model)
    use_lean_swiglu(model)
    parts = [module for name, module in model.named_modules() if name.endswith(("norm", "mlp"))]
    assert len(parts) > 3
    assert all(module.forward.__module__.startswith("abmll.decoder") for module in parts)
    torch.testing.assert_close(model(tokens).logits, expected, atol=1e-5, rtol=1e-4)
