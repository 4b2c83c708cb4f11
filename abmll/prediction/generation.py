"""Free-text answers, written under posterior samples, a few tokens a unit.

A sample's weights stay the same for a whole answer, so its KV cache is consistent. Layers that
differ between samples have a cache for each answer. The others have one for each prompt: the prompt
is computed and stored once, and the answers' tokens are parallel branches behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from transformers import DynamicCache

from abmll.decoder.backbone import Backbone
from abmll.decoder.passes import Pace, Resting, Works, finish
from abmll.decoder.rows import token_batches
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.noise.contract import Samples
from abmll.posterior.noise.draws import full_samples, means, readout_noise
from abmll.posterior.noise.families import family_of
from abmll.posterior.noise.point import Lora, LoraSamples
from abmll.seeds import derive_seed, sample_seeds

# Tokens written in one unit; other work can run between two units.
TOKENS_PER_UNIT = 16
# A pass through all layers takes as long as one of these many tokens: each reads all weights.
FEWEST_TOKENS_READ = 64
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
            return max(FEWEST_TOKENS_READ, len(self._state.done)) * TOKENS_PER_UNIT
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
        """Yield the piece in pieces of at most `max_tokens`: of fewer prompts, then of fewer
        answers.
        """
        if self._size(piece) <= max_tokens:
            yield piece
            return
        chunk, answers = piece
        for batch in token_batches([self._lengths[i] for i in chunk], max_tokens // len(answers)):
            prompts = [chunk[k] for k in batch]
            at_once = max(1, max_tokens // sum(self._lengths[i] for i in prompts))
            for start in range(0, len(answers), at_once):
                yield prompts, answers[start : start + at_once]

    def advance(self, backbone: Backbone) -> None:
        """Do one unit.

        It reads some prompts, or writes up to `TOKENS_PER_UNIT` tokens behind those that were read.
        After an exception the piece is begun again: its caches may lack a layer's keys.
        """
        finish(self.unit(backbone, None))

    @torch.no_grad()
    def unit(self, backbone: Backbone, pace: Pace | None) -> Resting[None]:
        """Do what `advance` does, with rests."""
        try:
            yield from self._advance(backbone, pace)
        except BaseException:
            self._state = None
            raise

    def _advance(self, backbone: Backbone, pace: Pace | None) -> Resting[None]:
        chunk, answers = self._todo[0]
        if self._state is None:
            self._state = yield from self._read(backbone, chunk, answers, pace)
            return
        state = self._state
        for _ in range(TOKENS_PER_UNIT):
            if state.finished(self._max_new_tokens):
                break
            if pace and pace.due(max(FEWEST_TOKENS_READ, len(state.done)) * backbone.depth):
                yield
            state.write(self._end)
        if state.finished(self._max_new_tokens):
            for i, texts in zip(chunk, state.texts(self._end), strict=True):
                self.written[i] += texts
            self._state = None
            self._todo.pop(0)

    def _read(
        self, backbone: Backbone, chunk: Sequence[int], answers: range, pace: Pace | None
    ) -> Resting[_State]:
        first, last = answers[0] // self._per_sample, answers[-1] // self._per_sample
        config, sites, values = self._config, backbone.sites, self._values[None]
        sample_of_row = [n // self._per_sample - first for n in answers for _ in chunk]
        streams = [self._stream(n) for n in answers for _ in chunk]
        seeds = sample_seeds(self._seed, first, last + 1, paired=family_of(config.noise).paired)
        model: _Answering
        if self._samples and config.noise.readout_scale is not None:
            mean = means(config, sites, values)
            noise = readout_noise(config, sites, values[0], seeds=seeds, dtype=backbone.dtype)
            model = _SharedStates(backbone, mean, noise, sample_of_row)
        elif self._samples:
            samples = full_samples(
                config, sites, values, seeds=seeds, task_of_sample=[0] * len(seeds), dtype=backbone.dtype
            )
            model = _OwnStates(backbone, samples, sample_of_row)
        else:
            model = _OwnStates(backbone, means(config, sites, values), sample_of_row)
        return (yield from _State.read(model, streams, [self._prompts[i] for i in chunk], pace))

    def _stream(self, answer: int) -> torch.Generator | None:
        """Return the generator of a drawn answer; None for a greedy one.

        Each prompt has its own generator, so the other prompts of its batch do not matter.
        """
        sample, draw = divmod(answer, self._per_sample)
        if draw == 0:
            return None
        return torch.Generator().manual_seed(derive_seed(self._seed, "answer", sample, draw))


class _Answering(Protocol):
    """The logits of B prompts and G answers to each, as one posterior's samples give them.

    Row g * B + b is answer g behind prompt b.
    """

    backbone: Backbone
    sample_of_row: Sequence[int]

    def read(self, ids: Tensor, valid: Tensor, pace: Pace | None) -> Resting[Tensor]:
        """Return the logits [G * B, V] behind left-padded prompts `ids` [B, P].

        `valid` [B, P] is false for padding. Rests between blocks of tokens.
        """

    def write(self, token: Tensor, valid: Tensor, step: int) -> Tensor:
        """Return the logits [G * B, V] behind `token` [G * B, 1], token number `step` of each row."""


@dataclass
class _Branches:
    """B prompts whose answers are branches behind them, where all rows have the same layers.

    A branch sees its prompt and its own earlier tokens. Each prompt is computed and stored once.
    """

    count: int
    positions: Tensor  # [B, P]
    visible: Tensor  # [B, P, P]

    @classmethod
    def of(cls, valid: Tensor, count: int) -> _Branches:
        length = valid.shape[1]
        positions = (valid.long().cumsum(1) - 1).clamp_min(0)
        causal = torch.ones(length, length, dtype=torch.bool, device=valid.device).tril()
        visible = (valid[:, None, :] & causal) | torch.eye(length, dtype=torch.bool, device=valid.device)
        return cls(count, positions, visible)

    def of_step(self, token: Tensor, valid: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the ids and positions [B, G], and what is visible [B, G, keys], of one step."""
        count, prompts = self.count, len(valid)
        own = torch.eye(count, dtype=torch.bool, device=token.device).repeat(1, step)
        behind = own.expand(prompts, count, count * step)
        visible = torch.cat([valid[:, None, :].expand(prompts, count, -1), behind], -1)
        positions = (self.positions[:, -1:] + step).expand(prompts, count)
        return token.view(count, prompts).T, positions, visible


class _OwnStates:
    """Samples with adapters of their own: the trunk is shared, and each row has its own top."""

    def __init__(self, backbone: Backbone, samples: Samples, sample_of_row: Sequence[int]) -> None:
        self.backbone, self.sample_of_row, self._samples = backbone, sample_of_row, samples
        self._trunk, self._top = DynamicCache(), DynamicCache()

    def read(self, ids: Tensor, valid: Tensor, pace: Pace | None) -> Resting[Tensor]:
        """See `_Answering`. Noise of tokens is drawn in order: such prompts are read as a whole."""
        rows = len(self.sample_of_row)
        count = rows // len(ids)
        self._branches = _Branches.of(valid, count)
        apart = self._samples.for_rows(self.sample_of_row, [1] * rows).narrowed([1] * rows) is not None
        logits = ids.new_empty(0)
        for span in _spans(self.backbone, ids, rows, pace if apart else None):
            if pace and pace.due(_work(self.backbone, ids, rows, span)):
                yield
            positions = self._branches.positions[:, span]
            visible = self._branches.visible[:, span, : span.stop]
            hidden = self.backbone.continue_trunk(ids[:, span], positions, visible, self._trunk)
            padding = (span.stop - span.start - valid[:, span].sum(1)).tolist() * count
            draw = self._samples.for_rows(self.sample_of_row, [span.stop - span.start] * rows, padding)
            logits = self.backbone.next_logits(
                hidden.repeat(count, 1, 1),
                positions.repeat(count, 1),
                visible.repeat(count, 1, 1),
                self._top,
                draw,
            )
        return logits

    def write(self, token: Tensor, valid: Tensor, step: int) -> Tensor:
        """See `_Answering`."""
        count = self._branches.count
        ids, positions, visible = self._branches.of_step(token, valid, step)
        hidden = self.backbone.continue_trunk(ids, positions, visible, self._trunk)
        hidden = hidden.transpose(0, 1).flatten(0, 1)[:, None]
        keys = torch.cat([valid.repeat(count, 1), token.new_ones(len(token), step).bool()], 1)
        draw = self._samples.for_rows(self.sample_of_row, [1] * len(token), step=step)
        return self.backbone.next_logits(
            hidden, positions.T.reshape(-1, 1), keys[:, None, :], self._top, draw
        )


class _SharedStates:
    """Samples that differ in the readout alone: every layer is shared, and rows are branches."""

    def __init__(
        self, backbone: Backbone, mean: LoraSamples, noise: Lora, sample_of_row: Sequence[int]
    ) -> None:
        self.backbone, self.sample_of_row, self._mean, self._noise = backbone, sample_of_row, mean, noise
        self._adapter = torch.tensor(sample_of_row, device=backbone.device)
        self._trunk, self._top = DynamicCache(), DynamicCache()

    def read(self, ids: Tensor, valid: Tensor, pace: Pace | None) -> Resting[Tensor]:
        """See `_Answering`."""
        count = len(self.sample_of_row) // len(ids)
        self._branches = _Branches.of(valid, count)
        states = inputs = ids.new_empty(0)
        for span in _spans(self.backbone, ids, len(ids), pace):
            if pace and pace.due(_work(self.backbone, ids, len(ids), span)):
                yield
            positions = self._branches.positions[:, span]
            visible = self._branches.visible[:, span, : span.stop]
            states, inputs = self._shared(ids[:, span], positions, visible)
        return self._logits(states[:, -1].repeat(count, 1), inputs[:, -1].repeat(count, 1))

    def write(self, token: Tensor, valid: Tensor, step: int) -> Tensor:
        """See `_Answering`."""
        states, inputs = self._shared(*self._branches.of_step(token, valid, step))
        return self._logits(states.transpose(0, 1).flatten(0, 1), inputs.transpose(0, 1).flatten(0, 1))

    def _shared(self, ids: Tensor, positions: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.backbone.continue_trunk(ids, positions, visible, self._trunk)
        draw = self._mean.for_rows([0] * len(ids), [ids.shape[1]] * len(ids))
        return self.backbone.continue_readout(hidden, positions, visible, self._top, draw)

    def _logits(self, states: Tensor, inputs: Tensor) -> Tensor:
        return self.backbone.readout_logits(states, self._noise.of_rows(inputs, self._adapter))


@dataclass
class _State:
    """B prompts and G answers to each, while they are written.

    Row g * B + b is answer g behind prompt b.
    """

    model: _Answering
    streams: Sequence[torch.Generator | None]  # by row
    valid: Tensor  # [B, P]: real tokens of the left-padded prompts
    next: Tensor  # [G * B, 1]: tokens chosen but not yet read
    written: Tensor  # [G * B, tokens]
    done: Tensor  # [G * B]

    @classmethod
    def read(
        cls,
        model: _Answering,
        streams: Sequence[torch.Generator | None],
        prompts: Sequence[tuple[int, ...]],
        pace: Pace | None,
    ) -> Resting[_State]:
        rows, device, length = len(model.sample_of_row), model.backbone.device, max(map(len, prompts))
        ids = torch.tensor([[0] * (length - len(p)) + list(p) for p in prompts], device=device)
        valid = torch.tensor([[False] * (length - len(p)) + [True] * len(p) for p in prompts], device=device)
        return cls(
            model,
            streams,
            valid,
            _choose((yield from model.read(ids, valid, pace)), streams),
            torch.empty(rows, 0, dtype=torch.long, device=device),
            torch.zeros(rows, dtype=torch.bool, device=device),
        )

    def finished(self, max_new_tokens: int) -> bool:
        """Return whether every row has ended or has `max_new_tokens` tokens."""
        return self.written.shape[1] >= max_new_tokens or bool(self.done.all())

    def write(self, end: int) -> None:
        """Fix each row's next token, and read it to choose the one after."""
        token = self.next.masked_fill(self.done[:, None], end)
        self.written = torch.cat([self.written, token], 1)
        self.done = self.done | (token[:, 0] == end)
        self.next = _choose(self.model.write(token, self.valid, self.written.shape[1]), self.streams)

    def texts(self, end: int) -> list[list[tuple[int, ...]]]:
        """Return what was written, by prompt and answer, up to the end of each answer."""
        rows = [tuple(row[: row.index(end) + 1] if end in row else row) for row in self.written.tolist()]
        prompts = len(self.valid)
        return [[rows[g * prompts + b] for g in range(len(rows) // prompts)] for b in range(prompts)]


def _spans(backbone: Backbone, ids: Tensor, rows: int, pace: Pace | None) -> Iterator[slice]:
    """Yield the blocks of tokens in which prompts [B, P] are read, with `rows` in the adapted
    layers.
    """
    length, size = ids.shape[1], ids.shape[1]
    if pace is not None:
        of_token = _work(backbone, ids, rows, slice(0, length)) / length
        size = max(FEWEST_TOKENS_READ, int(pace.most / of_token))
    for start in range(0, length, size):
        yield slice(start, min(length, start + size))


def _work(backbone: Backbone, ids: Tensor, rows: int, span: slice) -> float:
    """Return the work of reading some tokens of prompts [B, P], as `Works` counts it."""
    trunk, keys = backbone.layout.first_layer, Works.of(backbone).key * span.stop
    layers = len(ids) * trunk + rows * (backbone.depth - trunk)
    work: float = (span.stop - span.start) * layers * (1 + keys)
    return work


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
