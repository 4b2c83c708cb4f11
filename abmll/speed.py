"""Measures how fast a model works on this machine, by small pieces of the work that it will do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from abmll.decoder.attention import (
    LONGEST_PLAIN_TOKENS,
    BlockLayout,
    BlockView,
    Layout,
    packed_attention,
)
from abmll.decoder.passes import BLOCK_TOKENS
from abmll.decoder.rows import Rows, collate
from abmll.model import FewShotModel
from abmll.prediction.settings import PredictSettings
from abmll.text.prompting import EncodedPrompt, LabelledPrompt
from abmll.work import Speed, Work, WorkCounter

# Times that each probe runs. The fastest counts, so the first, which warms up, does not.
ROUNDS = 2
# Lengths of the rows by which attention is measured: a short one, and a long one.
SHORT_ROW, LONG_ROW = 256, 1536
# A unit of this many tokens takes a whole pass of any probe.
UNBOUNDED_TOKENS = 1 << 20


class Probe(NamedTuple):
    """A small piece of work: how much it is, and a function that does it."""

    work: Work
    run: Callable[[], object]


def counter_of(model: FewShotModel) -> WorkCounter:
    """Return a counter of work on `model`, for passes without a bound."""
    backbone, config = model.backbone, model.sampled(model.prior.config)
    adapted = backbone.depth - config.layout.first_layer
    shared = config.noise.readout_scale is not None
    return WorkCounter(
        trunk=config.layout.first_layer,
        mean=adapted if shared else 0,
        sampled=0 if shared else adapted,
        chunk_tokens=UNBOUNDED_TOKENS,
        support_tokens=UNBOUNDED_TOKENS,
        step_tokens=UNBOUNDED_TOKENS,
        paired=model.paired,
        plain_tokens=LONGEST_PLAIN_TOKENS if backbone.device.type == "cpu" else 0,
        embedded_tokens=model.sentences.max_tokens if model.sentences else 0,
    )


def measure_speed(
    model: FewShotModel, rounds: int = ROUNDS, clock: Callable[[], float] = time.perf_counter
) -> Speed:
    """Return the speed of `model` on this machine, which does nothing else meanwhile.

    It is the least-squares fit, of relative errors, to the seconds of the probes by `clock`.
    """
    probes = list(probes_of(model))
    seconds = np.full(len(probes), np.inf)
    for _ in range(rounds):
        for i, probe in enumerate(probes):
            started = clock()
            probe.run()
            seconds[i] = min(seconds[i], clock() - started)
    amounts = np.array([probe.work.amounts for probe in probes])
    # Columns in units of their largest amount: tokens and pairs differ by many orders.
    largest = np.maximum(amounts.max(0), 1)
    found, _ = nnls(amounts / largest / seconds[:, None], np.ones(len(probes)))
    return Speed(tuple((found / largest).tolist()))


def probes_of(model: FewShotModel) -> Iterator[Probe]:
    """Yield probes that together have every kind of work on `model`.

    The largest of each kind has some hundred tokens, as passes of real work have: a token of a
    larger pass takes longer. With at most 192 tokens, prices of many inputs were 29 % too low.
    """
    counter = counter_of(model)
    for prompts in ([_prompt(16)], [_prompt(64)] * 4, [_prompt(8, 100, 3)]):
        yield _base(model, counter, prompts)
    for samples, length in ((2, 16), (4, 16), (4, 96)):
        yield _prediction(model, counter, _prompt(length), samples)
    if counter.mean:
        yield _prediction(model, counter, _prompt(96), 0)
        yield _prediction(model, counter, _prompt(8, 100, 3), 64)
    for rows, length in ((1, 16), (4, 16), (2, 96)):
        yield _adaptation(model, counter, [_prompt(length)] * rows)
    for length in (SHORT_ROW, LONG_ROW):
        yield from _attention(model, counter, length)
    if model.sentences:
        for texts, length in ((1, 8), (4, 32)):
            yield _embedding(model, texts, length)


def _prompt(tokens: int, options: int = 2, option_tokens: int = 1) -> EncodedPrompt:
    """Return a prompt of `tokens` tokens, whose options have names and no option reference."""
    ids = tuple(range(1, option_tokens + 1))
    return EncodedPrompt(
        tuple(1 + i % 200 for i in range(tokens)), (ids,) * options, options=tuple(map(str, range(options)))
    )


def _base(model: FewShotModel, counter: WorkCounter, prompts: Sequence[EncodedPrompt]) -> Probe:
    backbone = model.backbone
    rows = collate(prompts, backbone.device)

    def run() -> None:
        with torch.no_grad():
            backbone.log_probs(backbone.trunk(rows), rows, None).cpu()

    return Probe(counter.base_of(prompts), run)


def _prediction(model: FewShotModel, counter: WorkCounter, prompt: EncodedPrompt, samples: int) -> Probe:
    settings = PredictSettings(samples)

    def run() -> None:
        predicting = model.start_predict(None, [prompt], settings, UNBOUNDED_TOKENS)
        while not predicting.done:
            model.advance([predicting])

    return Probe(counter.prediction([prompt], settings), run)


def _adaptation(model: FewShotModel, counter: WorkCounter, prompts: Sequence[EncodedPrompt]) -> Probe:
    examples = [LabelledPrompt(prompt, 0) for prompt in prompts]
    settings = replace(model.defaults, steps=1)
    without_classes = replace(counter, embedded_tokens=0)  # they are the last part, which is left out

    def run() -> None:
        model.step([model.start_adapt(examples, settings)])

    return Probe(without_classes.adaptation(examples, settings), run)


def _attention(model: FewShotModel, counter: WorkCounter, length: int) -> Iterator[Probe]:
    """Yield one layer's attention to one row, forward, and with the way back."""
    backbone, config = model.backbone, model.backbone.model.config
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    rows = collate([EncodedPrompt((1,) * length)], backbone.device)
    layout = Layout.of(rows, backbone.dtype) if length <= LONGEST_PLAIN_TOKENS else None
    query, key, value = (
        torch.ones(1, n, length, size, dtype=backbone.dtype, device=backbone.device)
        for n in (heads, shared, shared)
    )

    def forward() -> Tensor:
        if layout is None:
            return in_blocks(rows, query, key, value).cpu()
        mixed, _ = packed_attention(backbone.model, query, key, value, None, layout=layout)
        return mixed.cpu()

    def both() -> None:
        for tensor in (query, key, value):
            tensor.requires_grad_()
        torch.autograd.grad(forward().sum(), (query, key, value))[0].cpu()
        for tensor in (query, key, value):
            tensor.requires_grad_(False)

    short, long = counter.pairs_of([length])
    yield Probe(Work(pairs=short, long_pairs=long), forward)
    yield Probe(Work(learnt_pairs=short, long_learnt_pairs=long), both)


def in_blocks(rows: Rows, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the attention of one long row, block by block, as `decoder/passes.py` computes it."""
    past, found = None, []
    for start in range(0, rows.lengths[0], BLOCK_TOKENS):
        span = slice(start, min(start + BLOCK_TOKENS, rows.lengths[0]))
        block = BlockLayout(BlockView.of(rows, span), past)
        q, k, v = (tensor[:, :, span] for tensor in (query, key, value))
        found.append(block.attend(q, k, v, query.shape[-1] ** -0.5))
        past = block.all
    return torch.cat(found, 1)


def _embedding(model: FewShotModel, texts: int, tokens: int) -> Probe:
    assert model.sentences is not None
    sentences, text = model.sentences, "a " * (tokens - 2)  # a mark stands at either end
    return Probe(Work(embedded_batches=1, embedded=texts * tokens), lambda: sentences([text] * texts))
