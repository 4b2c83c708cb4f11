from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from benchmarks.int8_products import FloatLinear, Int8Linear


@pytest.mark.parametrize("outliers", [0, 2])
def test_a_product_of_int8_is_near_that_of_floats(outliers: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*size, generator=generator) for size in ((2, 40, 64), (32, 64)))
    exact = linear(x, weight)
    assert torch.allclose(FloatLinear(weight)(x), exact)
    error = (Int8Linear(weight, outliers)(x) - exact).std() / exact.std()
    assert 0 < error < 0.02


def test_columns_apart_keep_the_others_exact_beside_an_outlier() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*size, generator=generator) for size in ((1, 40, 64), (32, 64)))
    x[..., 3] *= 1000
    exact = linear(x, weight)
    plain, apart = (float((Int8Linear(weight, n)(x) - exact).std()) for n in (0, 1))
    assert apart < plain / 50
