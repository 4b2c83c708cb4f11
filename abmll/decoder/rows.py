"""Prompts packed into rows, and rows packed into one flat batch of tokens: nothing is computed for padding.

A row is a tree of tokens: an optional prefix that several prompts share, the prompts behind it, and behind each prompt
its continuations (the options). Every token sees its ancestors in the tree and the earlier tokens of its own part, and
positions restart where branches do; so a row gives the same scores as one sequence per continuation would, for the
price of one prompt and one prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.text.prompting import EncodedPrompt

# Row lengths in attention are padded to a multiple of this: for some dtypes every new shape costs the CPU's matrix library
# a compiled kernel that it keeps.
LENGTH_MULTIPLE = 16
# A shared prefix is packed once for as many prompts as fit a row of this length: attention costs its square.
SHARED_ROW_TOKENS = 512
# Fewer shared tokens are not worth a longer row.
SHORTEST_SHARED_PREFIX = 16


@dataclass(frozen=True)
class Group:
    """Prompts of one row; their first `shared` tokens are the same and stand in the row once (0 for a row of one prompt)."""

    prompts: tuple[EncodedPrompt, ...]
    shared: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that the row holds: a continuation's last token is only predicted, never read."""
        return self.shared + sum(packed_length(prompt) - self.shared for prompt in self.prompts)

    def prompt_states(self, hidden: Tensor) -> list[Tensor]:
        """The states [tokens, d] of each prompt, without its continuations', from those of the row."""
        start, found = self.shared, []
        for prompt in self.prompts:
            own = hidden[start : start + len(prompt.prompt) - self.shared]
            found.append(torch.cat([hidden[: self.shared], own]))
            start += packed_length(prompt) - self.shared
        return found


@dataclass(frozen=True)
class Rows:
    """R rows packed into N tokens, row after row, with K tokens to score in M segments (a segment is one continuation).

    In attention, row i is padded to L places: `token_at` names the token in each place (0 in empty ones) and `place_of`
    the place of each token; a query in place q of row i may see key k iff `visible[i, q, k]`, empty places see only
    themselves. Tokens `scored` (ascending, `scored_by_row` of each row) predict others: scored token k is `target[k]`,
    predicted at token `scored[place[k]]`, and belongs to segment `segment[k]`.
    Segments come in the order of the prompts' continuations; `options` counts them by prompt.
    """

    input_ids: Tensor  # [N] int64
    positions: Tensor  # [N] int64
    lengths: tuple[int, ...]  # of the R rows
    token_at: Tensor  # [R * L] int64
    place_of: Tensor  # [N] int64
    visible: Tensor  # [R, L, L] bool
    scored: Tensor  # [P]: several continuations start at the same prompt token
    scored_by_row: tuple[int, ...]
    place: Tensor  # [K], into `scored`
    target: Tensor  # [K]
    segment: Tensor  # [K]
    options: tuple[int, ...]  # by prompt

    @property
    def segments(self) -> int:
        """M."""
        return sum(self.options)


def packed_length(prompt: EncodedPrompt) -> int:
    """Tokens that a row of this prompt alone holds."""
    return len(prompt.prompt) + sum(max(0, len(ids) - 1) for ids in prompt.continuations)


def share_prefixes(prompts: Sequence[EncodedPrompt]) -> list[list[int]]:
    """Indices of prompts that may share a row, in the order of their texts; see `group`."""
    order = sorted(range(len(prompts)), key=lambda i: prompts[i].prompt)
    shared: list[list[int]] = []
    for i in order:
        members = [*shared[-1], i] if shared else []
        if members and _worth_sharing([prompts[j] for j in members]):
            shared[-1] = members
        else:
            shared.append([i])
    return shared


def group(prompts: Sequence[EncodedPrompt]) -> Group:
    """The row of prompts that share a prefix: as much of it as all have, leaving each a token of its own."""
    return Group(tuple(prompts), _common_prefix(prompts) if len(prompts) > 1 else 0)


def _worth_sharing(prompts: Sequence[EncodedPrompt]) -> bool:
    row = group(prompts)
    return row.shared >= SHORTEST_SHARED_PREFIX and row.tokens <= SHARED_ROW_TOKENS


def _common_prefix(prompts: Sequence[EncodedPrompt]) -> int:
    first, last = min(p.prompt for p in prompts), max(p.prompt for p in prompts)
    shortest = min(len(p.prompt) for p in prompts) - 1
    return next((i for i in range(shortest) if first[i] != last[i]), shortest)


def token_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in batches of similar length, each of at most `max_tokens` in all (or one row longer than that)."""
    batches: list[list[int]] = []
    total = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if not batches or total + lengths[i] > max_tokens:
            batches.append([])
            total = 0
        batches[-1].append(i)
        total += lengths[i]
    return batches


class _Row:
    """One row while it is being written: its tokens, and for each the part it belongs to and that part's ancestors."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.parts: list[tuple[int, int, int]] = []  # own part, parent, grandparent; -2 for none
        self._count = 0

    def add(
        self, tokens: Sequence[int], start: int, ancestors: tuple[int, int] = (-2, -2)
    ) -> tuple[int, int]:
        """Append a part whose first token has position `start`; returns (itself, its parent) for its children."""
        part = (self._count, *ancestors)
        self._count += 1
        self.ids += tokens
        self.positions += range(start, start + len(tokens))
        self.parts += [part] * len(tokens)
        return part[0], part[1]


def collate(groups: Sequence[Group | EncodedPrompt], device: torch.device | str = "cpu") -> Rows:
    """Pack one row for each group, or for each prompt alone."""
    rows: list[_Row] = []
    scored: list[int] = []
    scored_by_row: list[int] = []
    places: list[int] = []
    targets: list[int] = []
    segments: list[int] = []
    options: list[int] = []
    offset = segment = 0
    for item in groups:
        members = item if isinstance(item, Group) else Group((item,))
        row = _Row()
        shared = members.shared
        root = row.add(members.prompts[0].prompt[:shared], 0) if shared else (-2, -2)
        for encoded in members.prompts:
            own = row.add(encoded.prompt[shared:], shared, root)
            length, last = len(encoded.prompt), len(scored)
            if encoded.continuations:
                scored.append(offset + len(row.ids) - 1)
            for continuation in encoded.continuations:
                start, first = offset + len(row.ids), len(scored)
                scored += range(start, start + len(continuation) - 1)
                places += [last, *range(first, len(scored))]
                targets += continuation
                segments += [segment] * len(continuation)
                segment += 1
                row.add(continuation[:-1], length, own)
            options.append(len(encoded.continuations))
        offset += len(row.ids)
        scored_by_row.append(len(scored) - sum(scored_by_row))
        rows.append(row)
    lengths = tuple(len(row.ids) for row in rows)
    length = -(-max(lengths) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    parts = torch.full((3, len(rows), length), -1)
    place_of: list[int] = []
    for i, row in enumerate(rows):
        parts[:, i, : len(row.ids)] = torch.tensor(row.parts).T
        place_of += range(i * length, i * length + len(row.ids))
    in_rows = torch.tensor(place_of)
    token_at = torch.zeros(len(rows) * length, dtype=torch.long)
    token_at[in_rows] = torch.arange(len(in_rows))
    own_part, key = parts[0], parts[0][:, None, :]
    seen = (key == parts[0][:, :, None]) | (key == parts[1][:, :, None]) | (key == parts[2][:, :, None])
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    visible = (causal & seen & (own_part >= 0)[:, None, :]) | torch.eye(length, dtype=torch.bool)
    flat = [[token for row in rows for token in row.ids], [place for row in rows for place in row.positions]]
    ids, positions, at, place, target, of_segment = (
        torch.tensor(values, dtype=torch.long).to(device)
        for values in (*flat, scored, places, targets, segments)
    )
    return Rows(
        ids, positions, lengths, token_at.to(device), in_rows.to(device), visible.to(device),
        at, tuple(scored_by_row), place, target, of_segment, tuple(options),
    )  # fmt: skip


def by_prompt(segment_values: Tensor, rows: Rows) -> list[Tensor]:
    """Split values of segments [..., M] into one tensor [..., options of the prompt] for each prompt."""
    return list(torch.split(segment_values, list(rows.options), dim=-1))
