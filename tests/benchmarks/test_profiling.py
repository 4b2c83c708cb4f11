"""Time by families of operators."""

import pytest
import torch

from benchmarks.profiling import REST, family, shares


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aten::mm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::_softmax", "softmax over options and vocabulary"),
        ("aten::scatter_add_", "copies, gathers and layouts"),
        ("aten::mul", "sums and elementwise"),
        ("SignedLoras", REST),
    ],
)
def test_operators_belong_to_one_family(name: str, expected: str) -> None:
    assert family(name) == expected


def test_shares_add_up_and_products_lead_where_products_are_all() -> None:
    a = torch.rand(400, 400)
    found = shares(lambda: [a @ a for _ in range(20)])
    assert sum(found.values()) == pytest.approx(1)
    assert next(iter(found)) == "matrix products"
