"""Encoded prompts as tensors: a prompt once per row, its continuations packed behind it.

Packed continuations see the prompt and themselves but not each other, and their positions restart behind the prompt, so
a row gives the same scores as one sequence per continuation would, for the price of one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.prompting import EncodedPrompt

# Lengths are padded to a multiple of this: every new shape costs the CPU's matrix library a compiled kernel that it keeps.
LENGTH_MULTIPLE = 16


@dataclass(frozen=True)
class Rows:
    """A batch of B rows of L packed tokens with N tokens to score, in M segments (a segment is one continuation).

    Query position i of row b may see key position j iff `visible[b, i, j]`; padding sees only itself.
    Scored token n is `target[n]`, predicted at (`score_row[n]`, `score_position[n]`), and belongs to segment
    `segment[n]`; segment m belongs to row `segment_row[m]`, in the order of that row's continuations.
    """

    input_ids: Tensor  # [B, L] int64
    positions: Tensor  # [B, L] int64
    valid: Tensor  # [B, L] bool
    visible: Tensor  # [B, L, L] bool
    score_row: Tensor  # [N]
    score_position: Tensor  # [N]
    target: Tensor  # [N]
    segment: Tensor  # [N]
    segment_row: Tensor  # [M]


def packed_length(prompt: EncodedPrompt) -> int:
    """Tokens that a row of this prompt holds: a continuation's last token is only predicted, never read."""
    return len(prompt.prompt) + sum(len(ids) - 1 for ids in prompt.continuations)


def collate(prompts: Sequence[EncodedPrompt], device: torch.device | str = "cpu") -> Rows:
    """One row for each prompt, padded on the right to a common length."""
    longest = max(map(packed_length, prompts))
    length = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    count = len(prompts)
    ids = torch.zeros(count, length, dtype=torch.long)
    positions = torch.zeros(count, length, dtype=torch.long)
    valid = torch.zeros(count, length, dtype=torch.bool)
    # Two tokens see each other iff the key belongs to the prompt (group 0) or to the query's own continuation, causally.
    group = torch.full((count, length), -1)
    rows: list[int] = []
    where: list[int] = []
    targets: list[int] = []
    segments: list[int] = []
    segment_row: list[int] = []
    for row, encoded in enumerate(prompts):
        tokens, places, groups = (
            list(encoded.prompt),
            list(range(len(encoded.prompt))),
            [0] * len(encoded.prompt),
        )
        last = len(encoded.prompt) - 1
        for number, continuation in enumerate(encoded.continuations, start=1):
            start = len(tokens)
            where += [last, *range(start, start + len(continuation) - 1)]
            targets += continuation
            rows += [row] * len(continuation)
            segments += [len(segment_row)] * len(continuation)
            segment_row.append(row)
            tokens += continuation[:-1]
            places += range(last + 1, last + len(continuation))
            groups += [number] * (len(continuation) - 1)
        used = len(tokens)
        ids[row, :used] = torch.tensor(tokens)
        positions[row, :used] = torch.tensor(places)
        group[row, :used] = torch.tensor(groups)
        valid[row, :used] = True
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    key, query = group[:, None, :], group[:, :, None]
    visible = causal & ((key == 0) | (key == query)) & valid[:, None, :] & valid[:, :, None]
    visible |= torch.eye(length, dtype=torch.bool)
    flat = [
        torch.tensor(values, dtype=torch.long) for values in (rows, where, targets, segments, segment_row)
    ]
    return Rows(*(tensor.to(device) for tensor in (ids, positions, valid, visible, *flat)))


def by_row(segment_values: Tensor, rows: Rows) -> list[Tensor]:
    """Split values of segments [..., M] into one tensor [..., options of the row] for each row."""
    counts = torch.bincount(rows.segment_row, minlength=rows.input_ids.shape[0])
    return list(torch.split(segment_values, counts.tolist(), dim=-1))
