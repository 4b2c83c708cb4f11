"""The work of an adaptation or a prediction, counted from its tokens before any of it is done.

A `WorkCounter` cuts tokens into rows, chunks and passes by the rules of the code that will do the
work, and adds up what they cost as `Work`. A `Speed` says how long each kind of work takes on one
machine (`abmll/speed.py` measures it). What is counted is one request alone, on an idle worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import add, mul
from typing import TYPE_CHECKING

from abmll.adaptation.run import batch_order
from abmll.decoder.option_references import TOKENS_PER_PASS, without_input
from abmll.decoder.rows import (
    LENGTH_MULTIPLE,
    group,
    packed_length,
    rows_of_inputs,
    share_prefixes,
    token_batches,
)
from abmll.prediction.generation import ANSWERS_AT_ONCE
from abmll.prediction.option_runs import SAMPLES_PER_CHUNK, SAMPLES_PER_LOOK
from abmll.text.prompting import EncodedPrompt, LabelledPrompt, by_question, options_differ

if TYPE_CHECKING:
    from abmll.adaptation.settings import AdaptSettings
    from abmll.prediction.settings import PredictSettings

# Texts that the sentence encoder reads at once.
TEXTS_AT_ONCE = 8


@dataclass(frozen=True)
class Work:
    """Amounts of each kind of work.

    Passes, tokens and pairs are counted once for each layer, `frozen` in layers without an
    adapter, `mean` in layers that all samples share, `sampled` in layers with noise, and `learnt`
    forward and backward. `draws` are samples times layers, anew in every chunk. `learnt_rows` are
    rows of gradient steps times layers; each has its own noise. `pairs` are squares of row lengths.
    Those of passes with a row that is too long for plain products are `long_pairs`, of padded rows.
    `scored` are tokens that go through the last layer of the language model. `moved` are scored
    tokens times samples that differ in the readout alone. `embedded` are tokens of the sentence
    encoder, with padding, and `embedded_batches` its batches.
    """

    frozen_passes: float = 0
    frozen_tokens: float = 0
    mean_passes: float = 0
    mean_tokens: float = 0
    sampled_passes: float = 0
    sampled_tokens: float = 0
    draws: float = 0
    scored: float = 0
    moved: float = 0
    learnt_passes: float = 0
    learnt_tokens: float = 0
    learnt_rows: float = 0
    pairs: float = 0
    long_pairs: float = 0
    learnt_pairs: float = 0
    long_learnt_pairs: float = 0
    embedded_batches: float = 0
    embedded: float = 0

    @property
    def amounts(self) -> tuple[float, ...]:
        """Return the amounts, in the order of the fields."""
        return tuple(vars(self).values())

    def __add__(self, other: Work) -> Work:
        return Work(*map(add, self.amounts, other.amounts))

    def __mul__(self, times: float) -> Work:
        return Work(*(amount * times for amount in self.amounts))


@dataclass(frozen=True)
class Speed:
    """Seconds of one unit of each kind of work, in the order of the fields of `Work`."""

    seconds_of: tuple[float, ...]

    def seconds(self, work: Work) -> float:
        """Return how long `work` takes."""
        return float(sum(map(mul, work.amounts, self.seconds_of)))


@dataclass(frozen=True)
class _Pass:
    """Rows of one pass: their lengths, and the number of tokens that are scored."""

    lengths: tuple[int, ...]
    scored: int

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def times(self, copies: int) -> _Pass:
        return _Pass(self.lengths * copies, self.scored * copies)

    @classmethod
    def together(cls, parts: Sequence[_Pass]) -> _Pass:
        return cls(tuple(n for part in parts for n in part.lengths), sum(part.scored for part in parts))

    @classmethod
    def of(cls, prompts: Sequence[EncodedPrompt]) -> _Pass:
        return cls(tuple(map(packed_length, prompts)), sum(map(_scored, prompts)))


@dataclass(frozen=True)
class WorkCounter:
    """Counts work on one model, as one worker cuts it into passes.

    There are `trunk` layers below the first adapted one, and the others learn. Where samples differ
    in the readout alone, these are `mean` layers, which run once; else they are `sampled` layers,
    which run for each sample.

    A chunk of samples has at most `chunk_tokens` (`OptionRun`), a chunk of a support
    `support_tokens` (`Preparation`), and a backward pass `step_tokens` (`adapt_step`). `paired`
    says whether samples are. Rows of at most `plain_tokens` are attended to without padding. The
    sentence encoder reads `embedded_tokens` of a text; with 0 there is none.
    """

    trunk: int
    mean: int
    sampled: int
    chunk_tokens: int
    support_tokens: int
    step_tokens: int
    paired: bool = True
    plain_tokens: int = 512
    embedded_tokens: int = 0

    # ---- adaptation ----------------------------------------------------------------------------

    def adaptation(self, examples: Sequence[LabelledPrompt], settings: AdaptSettings, seed: int = 0) -> Work:
        """Return the work of an adaptation to `examples` (`AdaptRun`), with its preparation."""
        prompts = [example.prompt for example in examples]
        members = [[prompts[i] for i in row] for row in rows_of_inputs(prompts)]
        rows = [_Pass((group(own).tokens,), sum(map(_scored, own))) for own in members]
        lengths = [row.tokens for row in rows]
        work, known = Work(), set[EncodedPrompt]()
        for chunk in token_batches(lengths, self.support_tokens):
            work += self._forward(_Pass.together([rows[i] for i in chunk]), self.trunk)
            work += self._references([prompt for i in chunk for prompt in members[i]], known)
        for batch in batch_order(len(rows), settings.batch_size, settings.steps, seed):
            for numbers in _cut(batch, lengths, self.step_tokens):
                work += self._step(_Pass.together([rows[i] for i in numbers]))
        if fixed_classes(prompts):
            firsts = [prompts[numbers[0]] for numbers in by_question(prompts).values()]
            work += self._embedding(prompts) + sum(map(self._embedding_of_classes, firsts), Work())
        return work

    def _step(self, rows: _Pass) -> Work:
        layers = self.mean + self.sampled
        pairs, long_pairs = self.pairs_of(rows.lengths)
        return Work(
            learnt_passes=layers,
            learnt_tokens=layers * rows.tokens,
            learnt_rows=layers * len(rows.lengths),
            scored=2 * rows.scored,  # the way back is a product of the same size
            learnt_pairs=layers * pairs,
            long_learnt_pairs=layers * long_pairs,
        )

    # ---- prediction ----------------------------------------------------------------------------

    def prediction(
        self,
        prompts: Sequence[EncodedPrompt],
        settings: PredictSettings,
        *,
        with_process: bool = False,
        answer_tokens: int = 0,
    ) -> Work:
        """Return the work of a prediction for `prompts` (`QueryRun`).

        With "auto", it is the least: that of `SAMPLES_PER_LOOK` samples. `with_process` says
        whether the adapter has a Gaussian process. Free-text answers are taken to have
        `answer_tokens` tokens, or `max_new_tokens` where that is less, and to be all different.
        """
        samples = settings.option_samples
        if settings.samples == "auto":
            samples = min(samples, SAMPLES_PER_LOOK)
        with_options = [prompt for prompt in prompts if prompt.options]
        work = self._options(with_options, samples, with_process=with_process)
        free = [prompt for prompt in prompts if not prompt.options]
        if free:
            tokens = max(1, min(answer_tokens, settings.max_new_tokens))
            samples, each = settings.text_samples, settings.answers_per_sample
            work += self._writing(free, samples, each, settings.max_new_tokens, tokens)
            answers = ((0,) * tokens,) * (max(1, samples) * each)
            written = [EncodedPrompt(prompt.prompt, answers) for prompt in free]
            work += self._options(written, samples, with_process=False)
        return work

    def _options(self, prompts: Sequence[EncodedPrompt], samples: int, *, with_process: bool) -> Work:
        """Return the work of an `OptionRun`."""
        groups = [group([prompts[i] for i in members]) for members in share_prefixes(prompts)]
        work, known = Work(), set[EncodedPrompt]()
        for numbers in token_batches([row.tokens for row in groups], self.chunk_tokens):
            block = [groups[i] for i in numbers]
            members = [prompt for row in block for prompt in row.prompts]
            rows = _Pass(tuple(row.tokens for row in block), sum(map(_scored, members)))
            work += self._forward(rows, self.trunk) + self._references(members, known)
            if with_process:
                work += self._embedding(members)
            if self.mean:
                work += self._under_mean(rows, samples)
                continue
            for copies in self._chunks(rows.tokens, samples):
                work += self._sampled(rows, copies)
        return work

    def _chunks(self, tokens: int, samples: int) -> Iterator[int]:
        """Yield the samples of each chunk of a block (`OptionRun.next_chunk`); 1 for the mean."""
        if samples == 0:
            yield 1
        at_most = max(1, min(SAMPLES_PER_CHUNK, self.chunk_tokens // max(1, tokens)))
        while samples:
            at_once = min(samples, at_most)
            if self.paired and at_once > 1:
                at_once -= at_once % 2
            yield at_once
            samples -= at_once

    def _writing(
        self, prompts: Sequence[EncodedPrompt], samples: int, per_sample: int, most_tokens: int, tokens: int
    ) -> Work:
        """Return the work of `Writing`, where the longest answer of a batch has `tokens` tokens."""
        answers = max(1, samples) * per_sample
        at_once = min(answers, ANSWERS_AT_ONCE)
        lengths = [len(prompt.prompt) for prompt in prompts]
        room = max(1, self.chunk_tokens // at_once)
        work, shared = Work(), self.trunk + self.mean
        for chunk in token_batches([length + most_tokens for length in lengths], room):
            longest, count = max(lengths[i] for i in chunk), len(chunk)
            for start in range(0, answers, at_once):
                batch = min(at_once, answers - start)
                rows = batch * count
                drawn = (start + batch - 1) // per_sample - start // per_sample + 1
                # Shared layers read a prompt once; the others read it for each answer.
                work += self._written(longest * count, longest * rows, rows)
                work += Work(draws=self.sampled * drawn)
                work += Work(long_pairs=longest**2 * (shared * count + self.sampled * rows))
                # Each token is a pass that reads one token of every row.
                keys = rows * (longest + tokens / 2)
                one = self._written(rows, rows, rows) + Work(long_pairs=(shared + self.sampled) * keys)
                work += one * tokens
        return work

    def _written(self, shared: int, sampled: int, scored: int) -> Work:
        """Return the work of one pass of `Writing`, of so many tokens in shared and other layers."""
        return Work(
            frozen_passes=self.trunk,
            frozen_tokens=self.trunk * shared,
            mean_passes=self.mean,
            mean_tokens=self.mean * shared,
            sampled_passes=self.sampled,
            sampled_tokens=self.sampled * sampled,
            scored=scored,
        )

    # ---- parts of both -------------------------------------------------------------------------

    def trunk_of(self, prompts: Sequence[EncodedPrompt]) -> Work:
        """Return the work of one pass through the trunk, with a row for each prompt."""
        return self._forward(_Pass.of(prompts), self.trunk)

    def base_of(self, prompts: Sequence[EncodedPrompt]) -> Work:
        """Return the work of one pass of the base alone, with a row for each prompt."""
        rows = _Pass.of(prompts)
        return self._forward(rows, self.trunk + self.mean + self.sampled) + Work(scored=rows.scored)

    def _forward(self, rows: _Pass, layers: int) -> Work:
        """Return the work of one pass through layers without an adapter."""
        pairs, long_pairs = self.pairs_of(rows.lengths)
        return Work(
            frozen_passes=layers,
            frozen_tokens=layers * rows.tokens,
            pairs=layers * pairs,
            long_pairs=layers * long_pairs,
        )

    def _under_mean(self, rows: _Pass, samples: int) -> Work:
        """Return the work of the mean, and of samples that differ from it in the readout alone."""
        pairs, long_pairs = self.pairs_of(rows.lengths)
        return Work(
            mean_passes=self.mean,
            mean_tokens=self.mean * rows.tokens,
            pairs=self.mean * pairs,
            long_pairs=self.mean * long_pairs,
            scored=rows.scored * (2 if samples else 1),  # `Normaliser` has a product more
            moved=rows.scored * samples,
        )

    def _sampled(self, rows: _Pass, copies: int) -> Work:
        """Return the work of one pass, with `copies` of the rows, through layers with noise."""
        rows = rows.times(copies)
        pairs, long_pairs = self.pairs_of(rows.lengths)
        return Work(
            sampled_passes=self.sampled,
            sampled_tokens=self.sampled * rows.tokens,
            draws=self.sampled * copies,
            scored=rows.scored,
            pairs=self.sampled * pairs,
            long_pairs=self.sampled * long_pairs,
        )

    def _references(self, prompts: Sequence[EncodedPrompt], known: set[EncodedPrompt]) -> Work:
        """Return the work of `option_references` for options that are not `known`; add them."""
        new = dict.fromkeys(key for p in prompts if p.neutral for key in without_input(p))
        asked = [prompt for prompt in new if prompt not in known]
        known.update(asked)
        chunks = token_batches([packed_length(prompt) for prompt in asked], TOKENS_PER_PASS)
        return sum((self.base_of([asked[i] for i in chunk]) for chunk in chunks), Work())

    def _embedding(self, prompts: Sequence[EncodedPrompt]) -> Work:
        """Return the work of the sentence encoder on the inputs.

        An input is taken to have as many tokens there as its prompt.
        """
        return self._embedded([len(prompt.prompt) for prompt in prompts])

    def _embedding_of_classes(self, prompt: EncodedPrompt) -> Work:
        return self._embedded([len(ids) + 2 for ids in prompt.continuations])

    def _embedded(self, lengths: Iterable[int]) -> Work:
        if not self.embedded_tokens:
            return Work()
        read = sorted(min(length, self.embedded_tokens) for length in lengths)
        batches = [read[i : i + TEXTS_AT_ONCE] for i in range(0, len(read), TEXTS_AT_ONCE)]
        padded = sum(len(batch) * batch[-1] for batch in batches)
        return Work(embedded_batches=len(batches), embedded=padded)

    def pairs_of(self, lengths: Sequence[int]) -> tuple[int, int]:
        """Return the pairs, and the long pairs, of one layer of a pass (`packed_attention`)."""
        longest = max(lengths)
        if longest <= self.plain_tokens:
            return sum(length**2 for length in lengths), 0
        padded = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        return 0, len(lengths) * padded**2


def fixed_classes(prompts: Sequence[EncodedPrompt]) -> bool:
    """Return whether all prompts of a question have the same options, more than one."""
    own = [[prompts[i] for i in numbers] for numbers in by_question(prompts).values()]
    return any(len(of_one[0].continuations) > 1 and not options_differ(of_one) for of_one in own)


def _scored(prompt: EncodedPrompt) -> int:
    """Return the tokens of a row at which its continuations are predicted (`Rows.scored`)."""
    return bool(prompt.continuations) + sum(len(ids) - 1 for ids in prompt.continuations)


def _cut(numbers: Sequence[int], lengths: Sequence[int], most: int) -> Iterator[Sequence[int]]:
    """Yield `numbers` in order, in parts of at most `most` tokens or one longer row."""
    while numbers:
        totals = accumulate(lengths[i] for i in numbers)
        count = max(1, sum(total <= most for total in totals))
        yield numbers[:count]
        numbers = numbers[count:]
