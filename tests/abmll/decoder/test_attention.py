"""Attention over packed rows, computed in both ways, against plain attention row by row."""

import pytest
import torch
from torch import Tensor

from abmll.decoder import attention
from abmll.decoder.attention import Layout, packed_attention
from abmll.decoder.rows import collate
from abmll.text.prompting import EncodedPrompt

PROMPTS = [
    EncodedPrompt((1, 2, 3, 4), ((5, 6), (7, 8, 9))),
    EncodedPrompt((1, 2), ((3, 4, 5),)),
    EncodedPrompt((9,), ()),
]


@pytest.mark.parametrize("longest_plain", [512, 4])
@pytest.mark.parametrize("groups", [1, 3])
def test_packed_attention_is_attention_row_by_row(
    groups: int, longest_plain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "LONGEST_PLAIN_TOKENS", longest_plain)
    g = torch.Generator().manual_seed(0)
    rows = collate(PROMPTS)
    tokens = len(rows.input_ids)
    query = torch.randn(1, 6, tokens, 8, generator=g, requires_grad=True)
    key, value = (torch.randn(1, 6 // groups, tokens, 8, generator=g, requires_grad=True) for _ in "kv")
    layout = Layout.of(rows, torch.float32)

    def packed() -> Tensor:
        output, _ = packed_attention(torch.nn.Module(), query, key, value, None, scaling=0.3, layout=layout)
        return output

    def by_hand() -> Tensor:
        parts, start = [], 0
        for row, length in enumerate(rows.lengths):
            span = slice(start, start + length)
            q = query[0, :, span]
            k, v = (t[0, :, span].repeat_interleave(groups, 0) for t in (key, value))
            scores = (0.3 * q @ k.mT).masked_fill(~rows.visible[row, :length, :length], -torch.inf)
            parts.append((scores.softmax(-1) @ v).transpose(0, 1))
            start += length
        return torch.cat(parts)[None]

    weight = torch.randn(1, tokens, 6, 8, generator=g)
    results = [
        (y, *torch.autograd.grad((y * weight).sum(), (query, key, value))) for y in (packed(), by_hand())
    ]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
