"""Prompts packed into rows, and rows packed into one flat batch of tokens, without padding.

A row is a tree of tokens with up to three levels: a prefix that several prompts share, the prompts,
and behind each prompt its continuations. Each node of the tree is called a part. A token sees the
ancestors of its part, and the earlier tokens of its part. The position of a part's first token
follows that of its parent's last. So a row gives the same scores as one sequence for each
continuation, and computes each prompt and each prefix only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.text.prompting import EncodedPrompt

# Row lengths in attention are padded to a multiple of this. For some dtypes, the matrix library of
# the CPU compiles a kernel for every new shape, and keeps it.
LENGTH_MULTIPLE = 16
# Longest row of several prompts, in tokens: the cost of attention grows with the square.
SHARED_ROW_TOKENS = 512
# Fewest tokens of a shared prefix: a shorter one does not make up for a longer row.
SHORTEST_SHARED_PREFIX = 16


@dataclass(frozen=True)
class Group:
    """Prompts of one row.

    Their first `shared` tokens are equal, and in the row once. `shared` is 0 for one prompt.
    """

    prompts: tuple[EncodedPrompt, ...]
    shared: int = 0

    @property
    def tokens(self) -> int:
        """Return the number of tokens in the row.

        The last token of a continuation is predicted but not read, so it is not in the row.
        """
        return self.shared + sum(packed_length(prompt) - self.shared for prompt in self.prompts)

    def prompt_states(self, hidden: Tensor) -> list[Tensor]:
        """Return the states [tokens, d] of each prompt, from those of the row.

        States of continuations are left out.
        """
        start, found = self.shared, []
        for prompt in self.prompts:
            own = hidden[start : start + len(prompt.prompt) - self.shared]
            found.append(torch.cat([hidden[: self.shared], own]))
            start += packed_length(prompt) - self.shared
        return found


@dataclass(frozen=True)
class Rows:
    """R rows packed into N tokens, row after row, with K tokens to score in M segments.

    A segment is one continuation. Segments are in the order of the prompts' continuations;
    `options` is their number by prompt.

    In attention, row i is padded to L places. `token_at` is the token in each place, 0 in empty
    ones, and `place_of` the place of each token. `parts` are the number of the part that is in each
    place, of its parent and of its grandparent: -1 in empty places, and -2 for none. The first
    `shared_by_row[i]` tokens of row i are the prefix of its prompts, and `own_by_row[i]` are the
    numbers of tokens of each behind it.

    Tokens `scored`, in ascending order, predict the tokens to score; `scored_by_row` is their
    number in each row. Token k to score is `target[k]`. It is predicted at token
    `scored[place[k]]`, and belongs to segment `segment[k]`.
    """

    input_ids: Tensor  # [N] int64
    positions: Tensor  # [N] int64
    lengths: tuple[int, ...]  # of the R rows
    shared_by_row: tuple[int, ...]
    own_by_row: tuple[tuple[int, ...], ...]
    token_at: Tensor  # [R * L] int64
    place_of: Tensor  # [N] int64
    parts: Tensor  # [3, R, L] int64
    scored: Tensor  # [P], P <= K: all continuations of a prompt start at its last token
    scored_by_row: tuple[int, ...]
    place: Tensor  # [K], into `scored`
    target: Tensor  # [K]
    segment: Tensor  # [K]
    options: tuple[int, ...]  # by prompt

    @property
    def segments(self) -> int:
        """Return M, the number of segments."""
        return sum(self.options)

    @property
    def visible(self) -> Tensor:
        """Return whether the query in place q of row i sees key k, [R, L, L].

        An empty place sees only itself.
        """
        own = self.parts[0]
        length = own.shape[-1]
        causal = torch.ones(length, length, dtype=torch.bool, device=own.device).tril()
        empty = torch.eye(length, dtype=torch.bool, device=own.device)
        return (causal & _seen(self.parts, self.parts) & (own >= 0)[:, None, :]) | empty

    def visible_from(self, queries: slice, row: int = 0) -> Tensor:
        """Return whether the tokens `queries` of a row see those before the last, [n, stop]."""
        parts = self.parts[:, row, : queries.stop]
        seen = _seen(parts[:, queries], parts)
        return seen & torch.ones_like(seen).tril(queries.start)


def packed_length(prompt: EncodedPrompt) -> int:
    """Return the number of tokens in a row of this prompt alone."""
    return len(prompt.prompt) + sum(max(0, len(ids) - 1) for ids in prompt.continuations)


def share_prefixes(prompts: Sequence[EncodedPrompt]) -> list[list[int]]:
    """Return lists of indices of prompts, one list a row.

    Prompts are taken in the order of their tokens, so that those with a common prefix follow each
    other. `group` makes a row of each list.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i].prompt)
    shared: list[list[int]] = []
    for i in order:
        members = [*shared[-1], i] if shared else []
        if members and _worth_sharing([prompts[j] for j in members]):
            shared[-1] = members
        else:
            shared.append([i])
    return shared


def rows_of_inputs(prompts: Sequence[EncodedPrompt]) -> list[list[int]]:
    """Return lists of indices of prompts, one list a row: prompts that ask about the same input.

    Prompts without an instruction are rows of their own. A row has at most `SHARED_ROW_TOKENS`, or
    one longer prompt.
    """
    rows: list[list[int]] = []
    latest: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        own = prompt.prompt[: prompt.input_tokens]
        row = latest.get(own) if prompt.question else None
        if row is not None and _worth_sharing([prompts[j] for j in (*row, i)]):
            row.append(i)
        else:
            rows.append([i])
            if prompt.question:
                latest[own] = rows[-1]
    return rows


def group(prompts: Sequence[EncodedPrompt]) -> Group:
    """Return the row of prompts, with the longest prefix that all of them have.

    The prefix leaves each prompt at least one token of its own.
    """
    return Group(tuple(prompts), _common_prefix(prompts) if len(prompts) > 1 else 0)


def _worth_sharing(prompts: Sequence[EncodedPrompt]) -> bool:
    row = group(prompts)
    return row.shared >= SHORTEST_SHARED_PREFIX and row.tokens <= SHARED_ROW_TOKENS


def _common_prefix(prompts: Sequence[EncodedPrompt]) -> int:
    first, last = min(p.prompt for p in prompts), max(p.prompt for p in prompts)
    shortest = min(len(p.prompt) for p in prompts) - 1
    return next((i for i in range(shortest) if first[i] != last[i]), shortest)


def token_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Return indices of rows in batches of similar length.

    A batch has at most `max_tokens` in all, or is one row that is longer.
    """
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
    """Row under construction: tokens, and for each its position, its part and two ancestors."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.parts: list[tuple[int, int, int]] = []  # own part, parent, grandparent; -2 for none
        self._count = 0

    def add(
        self, tokens: Sequence[int], start: int, ancestors: tuple[int, int] = (-2, -2)
    ) -> tuple[int, int]:
        """Append a part at position `start`. Return itself and its parent, for its children."""
        part = (self._count, *ancestors)
        self._count += 1
        self.ids += tokens
        self.positions += range(start, start + len(tokens))
        self.parts += [part] * len(tokens)
        return part[0], part[1]


def collate(groups: Sequence[Group | EncodedPrompt], device: torch.device | str = "cpu") -> Rows:
    """Pack one row for each group, and for each prompt that is in none."""
    rows: list[_Row] = []
    scored: list[int] = []
    scored_by_row: list[int] = []
    places: list[int] = []
    targets: list[int] = []
    segments: list[int] = []
    options: list[int] = []
    offset = segment = 0
    members = [item if isinstance(item, Group) else Group((item,)) for item in groups]
    for item in members:
        row = _Row()
        shared = item.shared
        root = row.add(item.prompts[0].prompt[:shared], 0) if shared else (-2, -2)
        for encoded in item.prompts:
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
    shared_by_row = tuple(item.shared for item in members)
    own_by_row = tuple(
        tuple(packed_length(prompt) - item.shared for prompt in item.prompts) for item in members
    )
    length = -(-max(lengths) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    parts = torch.full((3, len(rows), length), -1)
    place_of: list[int] = []
    for i, row in enumerate(rows):
        parts[:, i, : len(row.ids)] = torch.tensor(row.parts).T
        place_of += range(i * length, i * length + len(row.ids))
    in_rows = torch.tensor(place_of)
    token_at = torch.zeros(len(rows) * length, dtype=torch.long)
    token_at[in_rows] = torch.arange(len(in_rows))
    flat = [[token for row in rows for token in row.ids], [place for row in rows for place in row.positions]]
    ids, positions, at, place, target, of_segment = (
        torch.tensor(values, dtype=torch.long).to(device)
        for values in (*flat, scored, places, targets, segments)
    )
    return Rows(
        ids, positions, lengths, shared_by_row, own_by_row, token_at.to(device), in_rows.to(device), parts.to(device),
        at, tuple(scored_by_row), place, target, of_segment, tuple(options),
    )  # fmt: skip


def _seen(queries: Tensor, keys: Tensor) -> Tensor:
    """Return whether a key's part is that of a query or one of its ancestors, [..., queries, keys].

    Both are parts [3, ..., tokens].
    """
    key = keys[0][..., None, :]
    own, parent, grandparent = queries[..., None]
    seen: Tensor = (key == own) | (key == parent) | (key == grandparent)
    return seen


def by_prompt(segment_values: Tensor, rows: Rows) -> list[Tensor]:
    """Split values of segments [..., M] into one tensor [..., continuations] for each prompt."""
    return list(torch.split(segment_values, list(rows.options), dim=-1))
