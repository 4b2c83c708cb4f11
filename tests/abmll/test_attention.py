"""Both ways of computing attention are the same function."""

import pytest
import torch
from torch import Tensor

from abmll import attention


@pytest.mark.parametrize("groups", [1, 3])
def test_plain_products_equal_the_fused_kernel(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 9, 8, generator=g, requires_grad=True)
    key, value = (torch.randn(2, 6 // groups, 9, 8, generator=g, requires_grad=True) for _ in "kv")
    seen = torch.rand(2, 1, 9, 9, generator=g) < 0.6
    seen |= torch.eye(9, dtype=torch.bool)
    mask = torch.zeros(2, 1, 9, 9).masked_fill(~seen, torch.finfo(torch.float32).min)
    module = torch.nn.Module()
    module.num_key_value_groups = groups  # type: ignore[assignment]

    def run() -> tuple[Tensor, ...]:
        output, _ = attention.cpu_attention(module, query, key, value, mask, scaling=0.3)
        return (output, *torch.autograd.grad(output.square().sum(), (query, key, value)))

    plain = run()
    monkeypatch.setattr(attention, "LONGEST_PLAIN_TOKENS", 4)
    for one, other in zip(plain, run(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
