"""Prediction: the average over S posterior samples, in probability space (docs/method.md 5).

Options: softmax over the options' scores under each sample, then the mean. Free text: each sample's weights write one
answer greedily; every distinct answer is then scored under every sample, and the probability that is left belongs to
texts nobody wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from abmll.adapt import token_batches
from abmll.backbone import Backbone
from abmll.noise import Samples, derive_seed, draw_samples, mean_samples
from abmll.posterior import TaskPosterior, unflatten
from abmll.prompting import EncodedPrompt, PromptEncoder
from abmll.rows import by_row, collate, packed_length
from abmll.uncertainty import Predictive, summarise

# Padded tokens in one forward pass of the adapted layers, and of the trunk: bounds memory, large enough for full speed.
TOKENS_PER_PASS = 8192
# Posterior samples turned into adapters at once; each costs rank r + m (r + 1) matrices while it is used.
SAMPLES_PER_PASS = 8


@dataclass(frozen=True)
class Prediction:
    """What is predicted for one query, and the tokens it took."""

    predictive: Predictive
    prompt_tokens: int
    completion_tokens: int


def sample_groups(
    backbone: Backbone, posterior: TaskPosterior, samples: int, seed: int
) -> list[tuple[int, Samples]]:
    """S samples in groups of (how many, their draws); S = 0 is one group of the mean. Sample n depends on `seed` and n alone."""
    device = backbone.device
    tensors = unflatten(posterior.values.to(device)[None], posterior.sites, posterior.config.rank)
    if samples == 0:
        return [(1, mean_samples(posterior.config, tensors))]
    groups = []
    for start in range(0, samples, SAMPLES_PER_PASS):
        seeds = [derive_seed(seed, "sample", n) for n in range(start, min(start + SAMPLES_PER_PASS, samples))]
        tasks = torch.zeros(len(seeds), dtype=torch.long, device=device)
        dtype = backbone.model.dtype
        drawn = draw_samples(
            posterior.config, posterior.sites, tensors, seeds=seeds, task_of_sample=tasks, dtype=dtype
        )
        groups.append((len(seeds), drawn))
    return groups


@torch.no_grad()
def continuation_log_probs(
    backbone: Backbone, groups: Sequence[tuple[int, Samples]], prompts: Sequence[EncodedPrompt]
) -> list[Tensor]:
    """Log-probabilities [samples, continuations] in fp32 of every prompt's continuations."""
    widest = max(count for count, _ in groups)
    chunks = token_batches([packed_length(prompt) for prompt in prompts], TOKENS_PER_PASS // widest)
    scores: list[Tensor] = [torch.empty(0)] * len(prompts)
    for chunk in chunks:
        rows = collate([prompts[i] for i in chunk], backbone.device)
        hidden = backbone.trunk(rows)
        parts = []
        for count, samples in groups:
            # A single row may be longer than the budget of a pass: then its samples run in smaller parts.
            at_once = max(1, min(count, TOKENS_PER_PASS // rows.input_ids.numel()))
            for part in torch.split(torch.arange(count, device=backbone.device), at_once):
                sample_of_row = part.repeat_interleave(len(chunk))
                draw = samples.for_rows(sample_of_row, rows.valid.repeat(len(part), 1))
                parts.append(backbone.log_probs(hidden, rows, draw, copies=len(part)))
        for i, values in zip(chunk, by_row(torch.cat(parts), rows), strict=True):
            scores[i] = values.cpu()
    return scores


def predict_options(
    backbone: Backbone,
    posterior: TaskPosterior,
    prompts: Sequence[EncodedPrompt],
    options: Sequence[tuple[str, ...]],
    *,
    samples: int,
    seed: int,
) -> list[Prediction]:
    """The posterior predictive over each prompt's options."""
    groups = sample_groups(backbone, posterior, samples, seed)
    scores = continuation_log_probs(backbone, groups, prompts)
    return [
        Prediction(
            summarise(texts, row.double().softmax(-1), samples=samples),
            len(prompt.prompt),
            prompt.tokens - len(prompt.prompt),
        )
        for prompt, texts, row in zip(prompts, options, scores, strict=True)
    ]


def predict_text(
    backbone: Backbone,
    posterior: TaskPosterior,
    prompts: Sequence[EncodedPrompt],
    encoder: PromptEncoder,
    *,
    samples: int,
    seed: int,
    max_new_tokens: int,
) -> list[Prediction]:
    """The posterior predictive over the answers that the samples write, each as a whole sequence with its end.

    Probabilities need not sum to one: the rest is that of other texts, and counts as one outcome in the entropies.
    """
    groups = sample_groups(backbone, posterior, samples, seed)
    written: list[list[tuple[int, ...]]] = [[] for _ in prompts]
    for chunk in token_batches(
        [len(p.prompt) + max_new_tokens for p in prompts], TOKENS_PER_PASS // SAMPLES_PER_PASS
    ):
        for count, drawn in groups:
            texts = generate(
                backbone,
                drawn,
                count,
                [prompts[i].prompt for i in chunk],
                encoder.end_of_text,
                max_new_tokens,
            )
            for i, row in zip(chunk, texts, strict=True):
                written[i] += row
    candidates = [_distinct(texts, encoder) for texts in written]
    scored = [EncodedPrompt(p.prompt, tuple(c.values())) for p, c in zip(prompts, candidates, strict=True)]
    scores = continuation_log_probs(backbone, groups, scored)
    return [
        Prediction(
            summarise(tuple(texts), row.double().exp(), samples=samples),
            len(prompt.prompt),
            sum(map(len, tokens)),
        )
        for prompt, texts, row, tokens in zip(prompts, candidates, scores, written, strict=True)
    ]


def _distinct(written: Sequence[tuple[int, ...]], encoder: PromptEncoder) -> dict[str, tuple[int, ...]]:
    """Different answers, with their ids: answers that read alike count once, as first written."""
    texts: dict[str, tuple[int, ...]] = {}
    for ids in written:
        texts.setdefault(encoder.decode(ids), ids)
    return texts


@torch.no_grad()
def generate(
    backbone: Backbone,
    samples: Samples,
    count: int,
    prompts: Sequence[tuple[int, ...]],
    end: int,
    max_new_tokens: int,
) -> list[list[tuple[int, ...]]]:
    """Greedy continuations by prompt and sample, each ending with `end` unless `max_new_tokens` cut it off.

    A sample's weights stay the same for its whole sequence, so its KV cache is consistent.
    """
    device, batch = backbone.device, len(prompts)
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(p)) + list(p) for p in prompts], device=device).repeat(count, 1)
    valid = torch.tensor(
        [[False] * (length - len(p)) + [True] * len(p) for p in prompts], device=device
    ).repeat(count, 1)
    positions = (valid.long().cumsum(1) - 1).clamp_min(0)
    visible = valid[:, None, :] & torch.ones(length, length, dtype=torch.bool, device=device).tril()
    visible = visible | torch.eye(length, dtype=torch.bool, device=device)
    sample_of_row = torch.arange(count, device=device).repeat_interleave(batch)
    cache = DynamicCache()
    written = torch.empty(count * batch, 0, dtype=torch.long, device=device)
    done = torch.zeros(count * batch, dtype=torch.bool, device=device)
    keys = valid
    draw = samples.for_rows(sample_of_row, keys)
    for _ in range(max_new_tokens):
        token = backbone.next_logits(ids, positions, visible, cache, draw).argmax(-1, keepdim=True)
        token = token.masked_fill(done[:, None], end)
        written = torch.cat([written, token], 1)
        done |= token[:, 0] == end
        if bool(done.all()):
            break
        ids, positions = token, positions[:, -1:] + 1
        keys = torch.cat([keys, torch.ones_like(token, dtype=torch.bool)], 1)
        visible = keys[:, None, :]
        draw = samples.for_rows(sample_of_row, torch.ones_like(token, dtype=torch.bool))
    texts = [tuple(row[: row.index(end) + 1] if end in row else row) for row in written.tolist()]
    return [[texts[sample * batch + i] for sample in range(count)] for i in range(batch)]
