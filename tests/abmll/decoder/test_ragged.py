"""Low-rank products over rows of different lengths, against the same products one by one."""

import pytest
import torch

from abmll.decoder.ragged import Blocks, ByRow, Padded, Ragged

LENGTHS = (3, 1, 5)


@pytest.mark.parametrize(
    "rows",
    [
        ByRow(LENGTHS),
        Padded(LENGTHS, torch.device("cpu")),
        *(Blocks(LENGTHS, together) for together in (0, 4, 8, 100)),
    ],
)
def test_each_row_has_its_factor(rows: Ragged) -> None:
    g = torch.Generator().manual_seed(0)
    tokens, out = torch.randn(9, 6, generator=g), torch.randn(9, 4, generator=g)
    down, up = torch.randn(3, 2, 6, generator=g), torch.randn(3, 2, 4, generator=g)
    parts, before = tokens.split(LENGTHS), out.clone().split(LENGTHS)
    inner = rows.project(tokens, down)
    rows.add_back(out, inner, up)
    for row, x, y, a, b in zip(out.split(LENGTHS), parts, before, down, up, strict=True):
        torch.testing.assert_close(row, y + x @ a.T @ b)
    expected = torch.stack([a @ x.T @ x for x, a in zip(parts, down, strict=True)])
    torch.testing.assert_close(rows.outer(inner, tokens), expected)
