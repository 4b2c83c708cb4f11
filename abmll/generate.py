"""Writing free-text answers under posterior samples, a few tokens a unit.

A sample's weights stay the same for its whole sequence, so its KV cache is consistent. The adapted layers keep a cache
for each sample; the trunk keeps one for each prompt, in which the samples' tokens are parallel branches behind
it: the prompt is computed and stored once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from abmll.adapt import token_batches
from abmll.backbone import Backbone
from abmll.noise import Samples, draw_samples, mean_samples, sample_seeds
from abmll.posterior import AdapterConfig, unflatten

# Tokens written between two chances to let other work in.
TOKENS_PER_UNIT = 16
# Posterior samples that write side by side.
SAMPLES_AT_ONCE = 8


class Writing:
    """Greedy answers of every sample to every prompt; `written` [prompts][samples] has the ids of those that are done.

    An answer ends with `end` unless `max_new_tokens` cut it off. `samples` 0 writes with the mean.
    """

    def __init__(
        self, config: AdapterConfig, values: Tensor, prompts: Sequence[tuple[int, ...]], samples: int, seed: int,
        end: int, max_new_tokens: int, max_tokens: int,
    ) -> None:  # fmt: skip
        self._config, self._values, self._prompts, self._seed = config, values, prompts, seed
        self._samples, self._end, self._max_new_tokens = samples, end, max_new_tokens
        self.written: list[list[tuple[int, ...]]] = [[] for _ in prompts]
        at_once = max(1, min(samples, SAMPLES_AT_ONCE))
        lengths = [len(prompt) + max_new_tokens for prompt in prompts]
        self._todo = [
            (chunk, start)
            for chunk in token_batches(lengths, max(1, max_tokens // at_once))
            for start in range(0, max(1, samples), at_once)
        ]
        self._at_once = at_once
        self._state: _State | None = None

    @property
    def done(self) -> bool:
        """Whether everything is written."""
        return not self._todo and self._state is None

    @property
    def next_tokens(self) -> int:
        """Tokens of the next unit."""
        if self._state is not None:
            return len(self._state.done) * TOKENS_PER_UNIT
        chunk, _ = self._todo[0]
        return sum(len(self._prompts[i]) for i in chunk) * self._at_once

    @torch.no_grad()
    def advance(self, backbone: Backbone) -> None:
        """Read some prompts, or write up to `TOKENS_PER_UNIT` tokens behind those that are read."""
        chunk, start = self._todo[0]
        if self._state is None:
            self._state = self._read(backbone, chunk, start)
            return
        state = self._state
        for _ in range(TOKENS_PER_UNIT):
            if state.finished(self._max_new_tokens):
                break
            state.write(backbone, self._end)
        if state.finished(self._max_new_tokens):
            for i, texts in zip(chunk, state.texts(self._end), strict=True):
                self.written[i] += texts
            self._state = None
            self._todo.pop(0)

    def _read(self, backbone: Backbone, chunk: Sequence[int], start: int) -> _State:
        tensors = unflatten(self._values[None], backbone.sites, self._config.rank)
        if self._samples == 0:
            return _State.read(
                backbone, mean_samples(self._config, tensors), 1, [self._prompts[i] for i in chunk]
            )
        seeds = sample_seeds(self._seed, start, min(self._samples, start + self._at_once), self._config.noise)
        drawn = draw_samples(
            self._config,
            backbone.sites,
            tensors,
            seeds=seeds,
            task_of_sample=[0] * len(seeds),
            dtype=backbone.dtype,
        )
        return _State.read(backbone, drawn, len(seeds), [self._prompts[i] for i in chunk])


@dataclass
class _State:
    """B prompts and G samples in the middle of writing; row g * B + b is sample g behind prompt b."""

    samples: Samples
    count: int
    prompts: int
    valid: Tensor  # [B, P]: real tokens of the left-padded prompts
    position: Tensor  # [B, 1]: of the prompts' last tokens
    trunk: DynamicCache
    top: DynamicCache
    next: Tensor  # [G * B, 1]: tokens chosen but not yet read
    written: Tensor  # [G * B, tokens]
    done: Tensor  # [G * B]

    @classmethod
    def read(
        cls, backbone: Backbone, samples: Samples, count: int, prompts: Sequence[tuple[int, ...]]
    ) -> _State:
        device, length = backbone.device, max(map(len, prompts))
        ids = torch.tensor([[0] * (length - len(p)) + list(p) for p in prompts], device=device)
        valid = torch.tensor([[False] * (length - len(p)) + [True] * len(p) for p in prompts], device=device)
        positions = (valid.long().cumsum(1) - 1).clamp_min(0)
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        visible = (valid[:, None, :] & causal) | torch.eye(length, dtype=torch.bool, device=device)
        trunk, top = DynamicCache(), DynamicCache()
        hidden = backbone.continue_trunk(ids, positions, visible, trunk).repeat(count, 1, 1)
        draw = samples.for_rows(_rows(count, len(prompts)), [length] * count * len(prompts))
        positions, visible = positions.repeat(count, 1), visible.repeat(count, 1, 1)
        token = backbone.next_logits(hidden, positions, visible, top, draw).argmax(-1, keepdim=True)
        rows = count * len(prompts)
        return cls(
            samples, count, len(prompts), valid, positions[: len(prompts), -1:], trunk, top, token,
            torch.empty(rows, 0, dtype=torch.long, device=device),
            torch.zeros(rows, dtype=torch.bool, device=device),
        )  # fmt: skip

    def finished(self, max_new_tokens: int) -> bool:
        """Whether every row has ended or is as long as it may be."""
        return self.written.shape[1] >= max_new_tokens or bool(self.done.all())

    def write(self, backbone: Backbone, end: int) -> None:
        """Fix each row's next token, and read it to choose the one after."""
        token = self.next.masked_fill(self.done[:, None], end)
        self.written = torch.cat([self.written, token], 1)
        self.done = self.done | (token[:, 0] == end)
        self.position = self.position + 1
        count, prompts, steps = self.count, self.prompts, self.written.shape[1]
        # In the trunk a prompt's samples are branches: each sees the prompt and its own earlier tokens.
        own = torch.eye(count, dtype=torch.bool, device=token.device).repeat(1, steps)
        behind = own.expand(prompts, count, count * steps)
        visible = torch.cat([self.valid[:, None, :].expand(prompts, count, -1), behind], -1)
        branches = token.view(count, prompts).T
        hidden = backbone.continue_trunk(branches, self.position.expand(prompts, count), visible, self.trunk)
        hidden = hidden.transpose(0, 1).flatten(0, 1)[:, None]
        keys = torch.cat([self.valid.repeat(count, 1), token.new_ones(len(token), steps).bool()], 1)
        draw = self.samples.for_rows(_rows(count, prompts), [1] * len(token))
        logits = backbone.next_logits(
            hidden, self.position.repeat(count, 1), keys[:, None, :], self.top, draw
        )
        self.next = logits.argmax(-1, keepdim=True)

    def texts(self, end: int) -> list[list[tuple[int, ...]]]:
        """What was written, by prompt and sample, up to its end."""
        rows = [tuple(row[: row.index(end) + 1] if end in row else row) for row in self.written.tolist()]
        return [[rows[g * self.prompts + b] for g in range(self.count)] for b in range(self.prompts)]


def _rows(count: int, prompts: int) -> list[int]:
    return [sample for sample in range(count) for _ in range(prompts)]
