"""The scores of options under samples of a posterior, in chunks of samples.

`score_chunk` advances any number of runs in one pass, also runs of different posteriors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from abmll.decoder import passes
from abmll.decoder.backbone import Backbone
from abmll.decoder.layout import AdapterLayout
from abmll.decoder.option_references import OptionReference, resting_references
from abmll.decoder.passes import Pace, Resting, Works, finish
from abmll.decoder.readout import Readout
from abmll.decoder.rows import Group, by_prompt, collate, group, share_prefixes, token_batches
from abmll.posterior.config import NoiseConfig
from abmll.posterior.noise.contract import Samples
from abmll.posterior.noise.draws import full_samples, means, readout_noise
from abmll.posterior.noise.families import family_of
from abmll.posterior.posteriors import TaskPosterior
from abmll.prediction.stopping import StopRule, settled
from abmll.prediction.uncertainty import tempered
from abmll.seeds import SampleSeed, sample_seeds
from abmll.similarity.features import Features
from abmll.similarity.gaussian_process import GaussianProcess
from abmll.text.prompting import EncodedPrompt

# Tokens times samples of one pass of the adapted layers: bounds memory, and reaches full speed.
TOKENS_PER_CHUNK = 8192
# Posterior samples that are turned into adapters of rank r + m (r + 1) at once.
SAMPLES_PER_CHUNK = 8
# The same, where samples differ in the readout alone.
SAMPLES_PER_READOUT = 64
# With a stop rule, samples between two checks of it.
SAMPLES_PER_LOOK = 8


@dataclass(frozen=True)
class Sampling:
    """How many samples a prompt gets.

    They are the first `samples` of the sequence that `seed` names; with 0, the mean. With a `stop`
    rule, `samples` is the most that a prompt gets.
    """

    samples: int
    seed: int
    stop: StopRule | None = None


@dataclass
class _Block:
    """Rows that are computed together.

    `numbers` are the numbers of their prompts. What all samples share of each row, once it is
    computed, are `states`, the trunk activations [tokens, d], or `readouts`. `sampled` counts the
    samples that are done.
    """

    groups: list[Group]
    numbers: list[list[int]]  # by group
    states: list[Tensor] = field(default_factory=list)
    readouts: list[Readout] = field(default_factory=list)
    sampled: int = 0

    @property
    def begun(self) -> bool:
        return bool(self.states or self.readouts)

    def only(self, rows: Sequence[int]) -> _Block:
        """Return the same block with some of its rows."""
        states = [self.states[i] for i in rows] if self.states else []
        readouts = [self.readouts[i] for i in rows] if self.readouts else []
        return _Block(
            [self.groups[i] for i in rows], [self.numbers[i] for i in rows], states, readouts, self.sampled
        )

    @property
    def tokens(self) -> int:
        return sum(g.tokens for g in self.groups)

    @property
    def by_number(self) -> dict[int, EncodedPrompt]:
        return {
            number: prompt
            for row, members in zip(self.groups, self.numbers, strict=True)
            for number, prompt in zip(members, row.prompts, strict=True)
        }


@dataclass(frozen=True)
class Chunk:
    """Samples `start` to `stop` of one block of a run: what one pass does for the run."""

    run: OptionRun
    block: _Block
    start: int
    stop: int

    @property
    def copies(self) -> int:
        """Return how often each row is computed: once for each sample, or once for the mean."""
        return max(1, self.stop - self.start)

    @property
    def seeds(self) -> Sequence[SampleSeed | None]:
        """Return the seed of each copy; None stands for the mean."""
        sampling = self.run.sampling
        if not sampling.samples:
            return [None]
        return sample_seeds(sampling.seed, self.start, self.stop, paired=self.run.paired)


class OptionRun:
    """The scores of every prompt's continuations under samples of a posterior, chunk by chunk.

    The values of `posterior` lie on the backbone's device. `max_tokens` bounds a chunk. `features`
    is the model's feature function, for a posterior with class examples.
    """

    def __init__(
        self,
        posterior: TaskPosterior,
        prompts: Sequence[EncodedPrompt],
        sampling: Sampling,
        max_tokens: int = TOKENS_PER_CHUNK,
        features: Features | None = None,
    ) -> None:
        self.config, self.values, self.sampling = posterior.config, posterior.values, sampling
        self.max_tokens = max_tokens
        self.scores: list[list[Tensor]] = [[] for _ in prompts]
        zero_shot = [posterior.is_zero_shot(prompt.question) for prompt in prompts]
        prompts = [
            prompt if without or not prompt.content_free else replace(prompt, content_free=())
            for prompt, without in zip(prompts, zero_shot, strict=True)
        ]
        self._references: dict[int, OptionReference] = {}
        similarity = posterior.config.similarity
        self._processes = {
            examples.question: GaussianProcess(examples, similarity)
            for examples in (posterior.class_examples if similarity else ())
            if similarity
        }
        self._sharpened = [
            without and prompt.described for prompt, without in zip(prompts, zero_shot, strict=True)
        ]
        self._questions = [prompt.question for prompt in prompts]
        self._declinable = [prompt.declinable for prompt in prompts]
        self._features, self._features_of = features or Features(), dict[int, Tensor]()
        groups = [(group([prompts[i] for i in members]), members) for members in share_prefixes(prompts)]
        batches = token_batches([row.tokens for row, _ in groups], max_tokens)
        self._blocks = [_Block([groups[i][0] for i in b], [groups[i][1] for i in b]) for b in batches]

    @property
    def reads_out(self) -> bool:
        """Return whether samples differ in the readout alone."""
        return self.sampling.samples > 0 and self.config.noise.readout_scale is not None

    @property
    def paired(self) -> bool:
        """Return whether samples come in antithetic pairs."""
        return family_of(self.config.noise).paired

    @property
    def done(self) -> bool:
        """Return whether every prompt has its samples."""
        return not self._blocks

    @property
    def next_tokens(self) -> int:
        """Return the number of tokens of the next chunk."""
        chunk = self.next_chunk()
        passes = (not chunk.block.begun) if self.reads_out else chunk.copies
        return max(1, chunk.block.tokens * passes)

    @property
    def once_tokens(self) -> int:
        """Return the tokens of what the next chunk computes once: its trunk and option references."""
        block = self.next_chunk().block
        return 0 if block.begun else 2 * block.tokens

    def next_chunk(self) -> Chunk:
        """Return the samples to draw next.

        A block gets all of its samples before the next block begins.
        """
        block = self._blocks[0]
        left = self.sampling.samples - block.sampled
        most = min(SAMPLES_PER_CHUNK, self.max_tokens // block.tokens)
        if self.reads_out:
            most = SAMPLES_PER_READOUT if self.sampling.stop is None else SAMPLES_PER_LOOK
        at_once = max(1, min(left, most))
        if self.paired and at_once > 1:
            at_once -= at_once % 2
        stop = min(self.sampling.samples, block.sampled + at_once)
        return Chunk(self, block, block.sampled, stop)

    def shrink(self, max_tokens: int) -> None:
        """Make the next chunks smaller.

        They have fewer samples, and where one sample is too much, fewer rows.
        """
        self.max_tokens = max_tokens
        while (block := self._blocks[0]).tokens > max_tokens and len(block.groups) > 1:
            rows = range(len(block.groups))
            half = len(rows) // 2
            self._blocks[:1] = [block.only(rows[:half]), block.only(rows[half:])]

    def begin(
        self, block: _Block, references: Mapping[int, OptionReference], trunk: Sequence[Tensor]
    ) -> None:
        """Receive the option references of a block's prompts, and its trunk activations by row."""
        self._references.update(references)
        rows = zip(block.groups, trunk, strict=True)
        states_of = [states for row, of_row in rows for states in row.prompt_states(of_row)]
        known = [
            (number, prompt, states[: prompt.input_tokens])
            for (number, prompt), states in zip(block.by_number.items(), states_of, strict=True)
            if prompt.question in self._processes
        ]
        if known:
            numbers, prompts, own = zip(*known, strict=True)
            features = self._features(own, [prompt.text for prompt in prompts])
            self._features_of.update(zip(numbers, features, strict=True))

    def typicality(self, number: int) -> float | None:
        """Return the typicality of a prompt whose block has begun; None without class examples."""
        process = self._processes.get(self._questions[number])
        return process.typicality(self._features_of[number]) if process is not None else None

    def take(self, chunk: Chunk, log_probs: Sequence[Tensor]) -> None:
        """Receive a chunk's `log_probs`, each [continuations].

        They are by sample, and then by prompt of the block.
        """
        block = chunk.block
        prompts, seeds = block.by_number, chunk.seeds
        numbers = list(prompts)
        for i, values in enumerate(log_probs):
            number = numbers[i % len(numbers)]
            scores = self._references[number].score(values)
            process = self._processes.get(self._questions[number])
            if process is not None:
                scores = scores + process.scores(
                    prompts[number], self._features_of[number], seeds[i // len(numbers)]
                )
            self.scores[number].append(scores)
        block.sampled += chunk.copies
        if block.sampled >= self.sampling.samples:
            self._blocks.pop(0)
        elif self.sampling.stop is not None and block.sampled % SAMPLES_PER_LOOK == 0:
            self._drop_settled(block, self.sampling.stop)

    def _drop_settled(self, block: _Block, rule: StopRule) -> None:
        """Remove the rows of which all prompts are settled."""
        open_ = [
            i for i, members in enumerate(block.numbers) if not all(self._settled(n, rule) for n in members)
        ]
        self._blocks[:1] = [block.only(open_)] if open_ else []

    def _settled(self, number: int, rule: StopRule) -> bool:
        temperature = self.temperature(number)
        return settled(self.probabilities(number), rule, paired=self.paired, temperature=temperature)

    def temperature(self, number: int) -> float:
        """Return the temperature of the question of one prompt."""
        rule = self.config.temperature
        if self._sharpened[number] and rule.zero_shot is not None:
            return rule.zero_shot
        return rule.of_question(self._questions[number])

    def scores_of(self, number: int) -> Tensor:
        """Return the scores [samples, continuations] of one prompt, on the CPU in fp64.

        They are `OptionReference.score` of the log-probabilities, plus the scores of the Gaussian
        process.
        """
        return torch.stack(self.scores[number]).double()

    def probabilities(self, number: int) -> Tensor:
        """Return the probabilities [samples, options] of one prompt.

        Those of a declinable prompt are given that its input tells the answer, which is not among
        the options then.
        """
        scores = self.scores_of(number)
        return (scores[:, :-1] if self._declinable[number] else scores).softmax(-1)

    def answerable(self, number: int) -> float | None:
        """Return the probability that a declinable prompt's input tells the answer, else None."""
        if not self._declinable[number]:
            return None
        mean = self.scores_of(number).softmax(-1).mean(0)
        return 1 - float(tempered(mean, self.temperature(number))[-1])

    def drawn(self, number: int) -> int:
        """Return the number of samples that one prompt got; 0 for the mean."""
        return len(self.scores[number]) if self.sampling.samples else 0

    @property
    def unsettled(self) -> frozenset[int]:
        """Return the numbers of the prompts that are to get more samples."""
        return frozenset(n for block in self._blocks for members in block.numbers for n in members)


def score_chunk(backbone: Backbone, chunks: Sequence[Chunk]) -> None:
    """Compute the chunks and give each run its log-probabilities.

    Chunks of the same layout and noise share a pass, but for those of the mean, which have their
    own.
    """
    finish(resting_scores(backbone, chunks, None))


@torch.no_grad()
def resting_scores(backbone: Backbone, chunks: Sequence[Chunk], pace: Pace | None) -> Resting[None]:
    """Do what `score_chunk` does, with rests. No run moves before the end."""
    yield from _begin(backbone, [chunk for chunk in chunks if not chunk.block.begun], pace)
    found: list[tuple[Chunk, list[Tensor]]] = []
    for alike in _alike([chunk for chunk in chunks if not chunk.run.reads_out]):
        samples, sample_of_row = _draw(backbone, alike)
        groups = [g for chunk in alike for _ in range(chunk.copies) for g in chunk.block.groups]
        hidden = torch.cat([h for chunk in alike for _ in range(chunk.copies) for h in chunk.block.states])
        rows = collate(groups, backbone.device)
        draw = samples.for_rows(sample_of_row, rows.lengths)
        log_probs = yield from passes.log_probs(backbone, hidden, rows, draw, pace)
        scores = iter(by_prompt(log_probs.cpu(), rows))
        for chunk in alike:
            prompts = sum(map(len, chunk.block.numbers))
            found.append((chunk, [next(scores) for _ in range(prompts * chunk.copies)]))
    for chunk in (chunk for chunk in chunks if chunk.run.reads_out):
        scores_of_chunk = yield from _read_out(backbone, chunk, pace)
        found.append((chunk, scores_of_chunk))
    for chunk, values in found:  # after all passes: one that fails leaves every run as it was
        chunk.run.take(chunk, values)


def _begin(backbone: Backbone, chunks: Sequence[Chunk], pace: Pace | None) -> Resting[None]:
    """Compute what a block needs once, before its first chunk.

    That is the option references of its prompts, the trunk's activations, and from there the
    readout, for samples that differ in it alone.
    """
    members = [chunk.block.by_number for chunk in chunks]
    prompts_of_all = [prompt for prompts in members for prompt in prompts.values()]
    found = iter((yield from resting_references(backbone, prompts_of_all, pace, remember=True)))
    for chunk, prompts in zip(chunks, members, strict=True):
        rows = collate(chunk.block.groups, backbone.device)
        trunk = yield from passes.trunk(backbone, rows, pace)
        references = {number: next(found).cpu() for number in prompts}
        chunk.run.begin(chunk.block, references, trunk.split(rows.lengths))
        if not chunk.run.reads_out:
            chunk.block.states = list(trunk.split(rows.lengths))
        else:
            mean = means(chunk.run.config, backbone.sites, chunk.run.values[None])
            draw = mean.for_rows([0] * len(rows.lengths), rows.lengths)
            readout = yield from passes.readout(backbone, trunk, rows, draw, pace)
            chunk.block.readouts = readout.split(rows.scored_by_row)


def _read_out(backbone: Backbone, chunk: Chunk, pace: Pace | None) -> Resting[list[Tensor]]:
    """Return the log-probabilities of a chunk whose samples differ in the readout alone."""
    rows = collate(chunk.block.groups, backbone.device)
    readout = Readout.joined(chunk.block.readouts)
    seeds = [seed for seed in chunk.seeds if seed is not None]
    work = Works.of(backbone).moved * len(rows.scored)
    at_once = len(seeds) if pace is None else max(1, int(pace.most / max(work, 1.0)))
    found = []
    for start in range(0, len(seeds), at_once):
        own = seeds[start : start + at_once]
        if pace and pace.due(work * len(own)):
            yield
        noise = readout_noise(
            chunk.run.config, backbone.sites, chunk.run.values, seeds=own, dtype=backbone.dtype
        )
        found.append(backbone.readout_log_probs(readout, noise.of, rows).cpu())
    return [values for sample in torch.cat(found) for values in by_prompt(sample, rows)]


def _alike(chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
    """Yield the chunks by pass: one pass has one layout and noise, and all or none of the mean."""
    kinds: dict[tuple[AdapterLayout, NoiseConfig, bool], list[Chunk]] = {}
    for chunk in chunks:
        config, of_mean = chunk.run.config, chunk.run.sampling.samples == 0
        kinds.setdefault((config.layout, config.noise, of_mean), []).append(chunk)
    yield from kinds.values()


def _draw(backbone: Backbone, chunks: Sequence[Chunk]) -> tuple[Samples, list[int]]:
    """Return the samples that the chunks need, and the number of each row's sample."""
    config, sites = chunks[0].run.config, backbone.sites
    values = torch.stack([chunk.run.values for chunk in chunks])
    of_row: list[int] = []
    number = 0
    for chunk in chunks:
        for _ in range(chunk.copies):
            of_row += [number] * len(chunk.block.groups)
            number += 1
    if chunks[0].run.sampling.samples == 0:
        return means(config, sites, values), of_row
    seeds = [seed for chunk in chunks for seed in chunk.seeds if seed is not None]
    tasks = [task for task, chunk in enumerate(chunks) for _ in range(chunk.copies)]
    return full_samples(
        config, sites, values, seeds=seeds, task_of_sample=tasks, dtype=backbone.dtype
    ), of_row
