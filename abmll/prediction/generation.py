"""Free-text answers, written under posterior samples, a few tokens a unit.

A sample's weights stay the same for a whole answer, so its KV cache is consistent. Layers with
noise have a cache for each answer. Those below, which all samples share, have one for each prompt:
the prompt is computed and stored once, and the answers' tokens are parallel branches behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import DynamicCache

from abmll.decoder.backbone import Backbone
from abmll.decoder.rows import token_batches
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.noise.contract import Samples
from abmll.posterior.noise.draws import own_mean, own_samples, shared_mean
from abmll.posterior.noise.families import family_of
from abmll.posterior.noise.point import LoraSamples
from abmll.seeds import derive_seed, sample_seeds

# Tokens written in one unit; other work can run between two units.
TOKENS_PER_UNIT = 16
# Answers to a prompt that are written in one batch.
ANSWERS_AT_ONCE = 8

# Prompts by number, and the answers to each of them that are written in one batch.
Piece: TypeAlias = tuple[Sequence[int], range]


class Writing:
    """The answers of every sample to every prompt, while they are written.

    `written` [prompts][samples * per_sample] has the token ids of the answers that are done. An
    answer ends with `end` unless `max_new_tokens` cut it off. With `samples` 0, the mean of the
    posterior writes. Of the `per_sample` answers of a sample, the first is greedy. Tokens of the
    others are drawn: answer j of sample n from a stream that depends on `seed`, n and j alone.
    """

    def __init__(
        self, config: PosteriorConfig, values: Tensor, prompts: Sequence[tuple[int, ...]], samples: int, seed: int,
        end: int, max_new_tokens: int, max_tokens: int, per_sample: int = 1,
    ) -> None:  # fmt: skip
        self._config, self._values, self._prompts, self._seed = config, values, prompts, seed
        self._samples, self._end, self._max_new_tokens = samples, end, max_new_tokens
        self._per_sample, self._answers = per_sample, max(1, samples) * per_sample
        self.written: list[list[tuple[int, ...]]] = [[] for _ in prompts]
        at_once = min(self._answers, ANSWERS_AT_ONCE)
        self._lengths = [len(prompt) + max_new_tokens for prompt in prompts]
        self._todo: list[Piece] = [
            (chunk, range(start, min(self._answers, start + at_once)))
            for chunk in token_batches(self._lengths, max(1, max_tokens // at_once))
            for start in range(0, self._answers, at_once)
        ]
        self._state: _State | None = None

    @property
    def done(self) -> bool:
        """Return whether everything is written."""
        return not self._todo and self._state is None

    @property
    def next_tokens(self) -> int:
        """Return the number of tokens of the next unit."""
        if self._state is not None:
            return len(self._state.done) * TOKENS_PER_UNIT
        chunk, answers = self._todo[0]
        return sum(len(self._prompts[i]) for i in chunk) * len(answers)

    @property
    def held_tokens(self) -> int:
        """Return the tokens that the caches hold at the end of the piece that is written now."""
        return self._size(self._todo[0])

    def shrink(self, max_tokens: int) -> None:
        """Write the rest in pieces that hold at most `max_tokens`, or one answer to one prompt.

        A larger piece that is begun is begun again. Its answers stay the same.
        """
        if self._size(self._todo[0]) > max_tokens:
            self._state = None
        self._todo = [smaller for piece in self._todo for smaller in self._split(piece, max_tokens)]

    def _size(self, piece: Piece) -> int:
        chunk, answers = piece
        return sum(self._lengths[i] for i in chunk) * len(answers)

    def _split(self, piece: Piece, max_tokens: int) -> Iterator[Piece]:
        """Yield the piece in pieces of at most `max_tokens`: of fewer prompts, then of fewer answers."""
        if self._size(piece) <= max_tokens:
            yield piece
            return
        chunk, answers = piece
        for batch in token_batches([self._lengths[i] for i in chunk], max_tokens // len(answers)):
            prompts = [chunk[k] for k in batch]
            at_once = max(1, max_tokens // sum(self._lengths[i] for i in prompts))
            for start in range(0, len(answers), at_once):
                yield prompts, answers[start : start + at_once]

    @torch.no_grad()
    def advance(self, backbone: Backbone) -> None:
        """Do one unit.

        It reads some prompts, or writes up to `TOKENS_PER_UNIT` tokens behind those that were read.
        After an exception the piece is begun again: its caches may lack a layer's keys.
        """
        try:
            self._advance(backbone)
        except BaseException:
            self._state = None
            raise

    def _advance(self, backbone: Backbone) -> None:
        chunk, answers = self._todo[0]
        if self._state is None:
            self._state = self._read(backbone, chunk, answers)
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

    def _read(self, backbone: Backbone, chunk: Sequence[int], answers: range) -> _State:
        config, values, sites = self._config, self._values[None], backbone.sites
        first, last = answers[0] // self._per_sample, answers[-1] // self._per_sample
        samples: Samples
        if self._samples == 0:
            samples = own_mean(config, sites, values)
        else:
            seeds = sample_seeds(self._seed, first, last + 1, paired=family_of(config.noise).paired)
            samples = own_samples(
                config, sites, values, seeds=seeds, task_of_sample=[0] * len(seeds), dtype=backbone.dtype
            )
        sample_of_row = [n // self._per_sample - first for n in answers for _ in chunk]
        streams = [self._stream(n) for n in answers for _ in chunk]
        shared = shared_mean(config, sites, values)
        prompts = [self._prompts[i] for i in chunk]
        return _State.read(backbone, config.sampled_from, shared, samples, sample_of_row, streams, prompts)

    def _stream(self, answer: int) -> torch.Generator | None:
        """Return the generator of a drawn answer; None for a greedy one.

        Each prompt has its own generator, so the other prompts of its batch do not matter.
        """
        sample, draw = divmod(answer, self._per_sample)
        if draw == 0:
            return None
        return torch.Generator().manual_seed(derive_seed(self._seed, "answer", sample, draw))


@dataclass
class _State:
    """B prompts and G answers to each, while they are written.

    Row g * B + b is answer g behind prompt b. Layers below `start` have the adapter `shared`, the
    others have `samples`. `lower` and `upper` are the caches of the two.
    """

    start: int
    shared: LoraSamples
    samples: Samples
    sample_of_row: Sequence[int]
    streams: Sequence[torch.Generator | None]  # by row
    count: int
    prompts: int
    valid: Tensor  # [B, P]: real tokens of the left-padded prompts
    position: Tensor  # [B, 1]: the place of the last token that was read
    lower: DynamicCache
    upper: DynamicCache
    next: Tensor  # [G * B, 1]: tokens chosen but not yet read
    written: Tensor  # [G * B, tokens]
    done: Tensor  # [G * B]

    @classmethod
    def read(
        cls,
        backbone: Backbone,
        start: int,
        shared: LoraSamples,
        samples: Samples,
        sample_of_row: Sequence[int],
        streams: Sequence[torch.Generator | None],
        prompts: Sequence[tuple[int, ...]],
    ) -> _State:
        rows, count = len(sample_of_row), len(sample_of_row) // len(prompts)
        device, length = backbone.device, max(map(len, prompts))
        ids = torch.tensor([[0] * (length - len(p)) + list(p) for p in prompts], device=device)
        valid = torch.tensor([[False] * (length - len(p)) + [True] * len(p) for p in prompts], device=device)
        positions = (valid.long().cumsum(1) - 1).clamp_min(0)
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        visible = (valid[:, None, :] & causal) | torch.eye(length, dtype=torch.bool, device=device)
        lower, upper = DynamicCache(), DynamicCache()
        mean = shared.for_rows([0] * len(prompts), [length] * len(prompts))
        hidden = backbone.continue_states(ids, positions, visible, lower, mean, start).repeat(count, 1, 1)
        padding = [length - len(prompt) for prompt in prompts] * count
        draw = samples.for_rows(sample_of_row, [length] * rows, padding)
        positions, visible = positions.repeat(count, 1), visible.repeat(count, 1, 1)
        token = _choose(backbone.next_logits(hidden, positions, visible, upper, draw, start), streams)
        return cls(
            start, shared, samples, sample_of_row, streams, count, len(prompts), valid,
            positions[: len(prompts), -1:], lower, upper, token,
            torch.empty(rows, 0, dtype=torch.long, device=device),
            torch.zeros(rows, dtype=torch.bool, device=device),
        )  # fmt: skip

    def finished(self, max_new_tokens: int) -> bool:
        """Return whether every row has ended or has `max_new_tokens` tokens."""
        return self.written.shape[1] >= max_new_tokens or bool(self.done.all())

    def write(self, backbone: Backbone, end: int) -> None:
        """Fix each row's next token, and read it to choose the one after."""
        token = self.next.masked_fill(self.done[:, None], end)
        self.written = torch.cat([self.written, token], 1)
        self.done = self.done | (token[:, 0] == end)
        self.position = self.position + 1
        count, prompts, steps = self.count, self.prompts, self.written.shape[1]
        # In the shared layers an answer is a branch: it sees the prompt and its own earlier tokens.
        own = torch.eye(count, dtype=torch.bool, device=token.device).repeat(1, steps)
        behind = own.expand(prompts, count, count * steps)
        visible = torch.cat([self.valid[:, None, :].expand(prompts, count, -1), behind], -1)
        branches = token.view(count, prompts).T
        mean = self.shared.for_rows([0] * prompts, [count] * prompts)
        hidden = backbone.continue_states(
            branches, self.position.expand(prompts, count), visible, self.lower, mean, self.start
        )
        hidden = hidden.transpose(0, 1).flatten(0, 1)[:, None]
        keys = torch.cat([self.valid.repeat(count, 1), token.new_ones(len(token), steps).bool()], 1)
        draw = self.samples.for_rows(self.sample_of_row, [1] * len(token), step=steps)
        logits = backbone.next_logits(
            hidden, self.position.repeat(count, 1), keys[:, None, :], self.upper, draw, self.start
        )
        self.next = _choose(logits, self.streams)

    def texts(self, end: int) -> list[list[tuple[int, ...]]]:
        """Return what was written, by prompt and answer, up to the end of each answer."""
        rows = [tuple(row[: row.index(end) + 1] if end in row else row) for row in self.written.tolist()]
        return [[rows[g * self.prompts + b] for g in range(self.count)] for b in range(self.prompts)]


def _choose(logits: Tensor, streams: Sequence[torch.Generator | None]) -> Tensor:
    """Return the next tokens [R, 1].

    A row without a stream gets the most probable token. A row with one draws a token with it: the
    one with the largest sum of logit and Gumbel noise.
    """
    scores = logits.clone()
    for row, stream in enumerate(streams):
        if stream is not None:
            waits = torch.empty(logits.shape[-1]).exponential_(generator=stream)
            scores[row] -= waits.log().to(logits.device)
    return scores.argmax(-1, keepdim=True)
