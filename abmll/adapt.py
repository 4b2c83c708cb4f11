"""Adaptation: K gradient steps on phi from theta on the support (docs/method.md 3).

The loss of a step is sum_i E_q[NLL_i] + beta KL(phi || theta), one posterior sample for each example i of the batch.
A task with options is scored by the options-normalised likelihood; free text by the likelihood of its tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from abmll.backbone import Backbone
from abmll.noise import OutputDraw, Samples, derive_seed, draw_samples, weight_divergence
from abmll.posterior import AdapterConfig, GlobalPosterior, Site, SiteTensors, TaskPosterior, unflatten
from abmll.prompting import EncodedPrompt
from abmll.rows import Rows, by_row, collate, packed_length

# Padded tokens that one backward pass may hold; a step on more is the sum of the gradients of its parts.
TOKENS_PER_BACKWARD = 4096
# Output rows of each weight matrix on which a step's KL is computed; the sum is scaled up (unbiased, see `weight_divergence`).
KL_ROWS = 16


@dataclass(frozen=True)
class AdaptSettings:
    """How phi is fitted: AdamW steps on batches of support examples.

    `beta` weighs KL(phi || theta); 0 is what the paper does at test time.
    """

    steps: int = 6
    learning_rate: float = 1e-3
    batch_size: int = 8
    beta: float = 0.0


@dataclass(frozen=True)
class Adaptation:
    """The adapted posterior, the mean loss (nats per example) of each step, and the tokens the support holds."""

    posterior: TaskPosterior
    losses: tuple[float, ...]
    support_tokens: int


@dataclass(frozen=True)
class LabelledPrompt:
    """A support example in tokens; `label` is the index of its output among the continuations."""

    prompt: EncodedPrompt
    label: int


@dataclass(frozen=True)
class Prepared:
    """Support with its trunk activations [packed tokens, d], computed once for all steps."""

    examples: Sequence[LabelledPrompt]
    hidden: Sequence[Tensor]

    def batch(self, chosen: Sequence[int], device: torch.device) -> tuple[Tensor, Rows, Sequence[int]]:
        """Activations [B, L, d], rows and labels of the chosen examples."""
        rows = collate([self.examples[i].prompt for i in chosen], device)
        hidden = pad_sequence([self.hidden[i] for i in chosen], batch_first=True)
        padding = rows.input_ids.shape[1] - hidden.shape[1]
        return (
            torch.nn.functional.pad(hidden, (0, 0, 0, padding)),
            rows,
            [self.examples[i].label for i in chosen],
        )


def prepare(backbone: Backbone, examples: Sequence[LabelledPrompt], max_tokens: int = 1024) -> Prepared:
    """Run the trunk over the support in batches of at most `max_tokens` padded tokens, similar lengths together."""
    hidden: list[Tensor] = [torch.empty(0)] * len(examples)
    for chunk in token_batches([packed_length(example.prompt) for example in examples], max_tokens):
        rows = collate([examples[i].prompt for i in chunk], backbone.device)
        for i, states, valid in zip(chunk, backbone.trunk(rows), rows.valid, strict=True):
            hidden[i] = states[valid]
    return Prepared(examples, hidden)


def token_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in batches of similar length, each at most `max_tokens` when padded (or one row longer than that)."""
    batches: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if not batches or longest * (len(batches[-1]) + 1) > max_tokens:
            batches.append([])
            longest = lengths[i]
        batches[-1].append(i)
    return batches


def negative_log_likelihood(log_probs: Tensor, rows: Rows, labels: Sequence[int]) -> Tensor:
    """NLL [B] in nats from segment log-probabilities [M]: over a row's options, or of its only continuation."""
    losses = []
    for scores, label in zip(by_row(log_probs, rows), labels, strict=True):
        losses.append(-scores[0] if len(scores) == 1 else scores.logsumexp(0) - scores[label])
    return torch.stack(losses)


@dataclass(frozen=True)
class StepLoss:
    """Of one batch, in nats: NLL [B] by example under one posterior sample each; KL(phi || theta) and log p(theta) [T] by task.

    The last two are zero where no prior was given.
    """

    nll: Tensor
    kl: Tensor
    log_prior: Tensor


def step_loss(
    backbone: Backbone,
    batch: tuple[Tensor, Rows, Sequence[int]],
    phi: Sequence[SiteTensors],
    *,
    task_of_row: Tensor,
    seeds: Sequence[int],
    prior: Sequence[SiteTensors] | None = None,
    kl_seed: int = 0,
) -> StepLoss:
    """Expected NLL of T task posteriors `phi` [T, ...] on a batch whose row i belongs to task `task_of_row[i]`.

    Every row draws its own sample from `seeds[i]`. With `prior` (theta, [T, ...]) the divergence from it is added up:
    over tokens and units for the `output` family, over weights (estimated on rows chosen by `kl_seed`) for `weight`.
    """
    hidden, rows, labels = batch
    config, sites = backbone.config, backbone.sites
    # One sign vector has the exact moments of many (docs/method.md 2) at a quarter of the cost of the default's four.
    # The noise scale is calibrated for prediction, on posteriors that were fitted without it.
    config = replace(config, noise_rank=1, noise_scale=1.0)
    samples: Samples = draw_samples(
        config, sites, phi, seeds=seeds, task_of_sample=task_of_row, dtype=hidden.dtype
    )
    draw = samples.for_rows(torch.arange(len(labels), device=hidden.device), rows.valid)
    if isinstance(draw, OutputDraw):
        draw.prior = prior
    nll = negative_log_likelihood(backbone.log_probs(hidden, rows, draw)[0], rows, labels)
    zero = nll.new_zeros(len(phi[0].mean_a))
    if prior is None:
        return StepLoss(nll, zero, zero)
    if isinstance(draw, OutputDraw):
        sums = (
            zero.index_add(0, task_of_row, torch.as_tensor(by_example))
            for by_example in (draw.kl, draw.log_prior)
        )
        return StepLoss(nll, *sums)
    return StepLoss(nll, *weight_divergences(config, sites, phi, prior, kl_seed))


def weight_divergences(
    config: AdapterConfig,
    sites: Sequence[Site],
    q: Sequence[SiteTensors],
    p: Sequence[SiteTensors],
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """KL(q || p) and log p(p), each [T] in nats over all sites of the `weight` family; with a `seed`, estimates on some rows."""
    rng = random.Random(seed)  # noqa: S311 - a reproducible draw, not a secret
    kls, log_priors = [], []
    for site, q_site, p_site in zip(sites, q, p, strict=True):
        rows = None
        if seed is not None and site.d_out > KL_ROWS:
            rows = torch.tensor(rng.sample(range(site.d_out), KL_ROWS), device=q_site.mean_a.device)
        kl, log_prior = weight_divergence(config, q_site, p_site, rows)
        kls.append(kl)
        log_priors.append(log_prior)
    return torch.stack(kls).sum(0), torch.stack(log_priors).sum(0)


@dataclass
class AdamW:
    """AdamW without weight decay on one flat tensor (the paper's optimiser), its state beside the values it moves."""

    first: Tensor
    second: Tensor
    step: int = 0

    @classmethod
    def zeros_like(cls, values: Tensor) -> AdamW:
        """A fresh optimiser for `values`."""
        return cls(torch.zeros_like(values), torch.zeros_like(values))

    def update(self, values: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
        """`values` one step further down `gradient` (PyTorch's defaults: betas .9 and .999, epsilon 1e-8)."""
        self.step += 1
        self.first.lerp_(gradient, 0.1)
        self.second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        scale = (self.second / (1 - 0.999**self.step)).sqrt_().add_(1e-8)
        return values.addcdiv(self.first, scale, value=-learning_rate / (1 - 0.9**self.step))


def batch_order(size: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Which examples each step sees: whole passes in random order, cut into batches."""
    rng = random.Random(seed)  # noqa: S311 - a reproducible draw, not a secret
    stream: list[int] = []
    batches = []
    for _ in range(steps):
        if len(stream) < batch_size:
            # What is left of this pass comes last in the next, so that no batch holds an example twice.
            stream += sorted(rng.sample(range(size), size), key=lambda i: i in stream)
        count = min(batch_size, size)
        batches.append(stream[:count])
        stream = stream[count:]
    return batches


def fit(
    backbone: Backbone,
    prior: GlobalPosterior,
    prepared: Prepared,
    settings: AdaptSettings,
    batches: Sequence[Sequence[int]],
    seed: int,
    optimiser: AdamW | None = None,
    on_step: Callable[[int], None] | None = None,
) -> tuple[TaskPosterior, tuple[float, ...]]:
    """phi after one AdamW step from theta for each of `batches`, and the steps' mean losses in nats per example.

    `optimiser` may carry moments over from earlier tasks; the default is a fresh one. `on_step` gets each step's number.
    """
    config, sites, device = prior.config, prior.sites, backbone.device
    values = prior.values.to(device)[None]
    theta = unflatten(values, sites, config.rank) if settings.beta else None
    optimiser = optimiser or AdamW.zeros_like(values)
    lengths = [len(states) for states in prepared.hidden]
    losses = []
    for number, chosen in enumerate(batches, start=1):
        values = values.detach().requires_grad_()
        gradient, total = torch.zeros_like(values), 0.0
        parts = token_batches([lengths[i] for i in chosen], TOKENS_PER_BACKWARD)
        for part in ([chosen[i] for i in indices] for indices in parts):
            loss = step_loss(
                backbone,
                prepared.batch(part, device),
                unflatten(values, sites, config.rank),
                task_of_row=torch.zeros(len(part), dtype=torch.long, device=device),
                seeds=[derive_seed(seed, number, i) for i in part],
                prior=theta,
                kl_seed=derive_seed(seed, number, "kl"),
            )
            # The divergence of the `weight` family is the task's, not the part's: each part bears its share.
            share = len(part) / len(chosen) if config.noise == "weight" else 1.0
            objective = loss.nll.sum() + settings.beta * share * loss.kl.sum()
            gradient += torch.autograd.grad(objective, values)[0]
            total += float(loss.nll.detach().sum())
        values = optimiser.update(values.detach(), gradient, settings.learning_rate)
        losses.append(total / len(chosen))
        if on_step:
            on_step(number)
    return TaskPosterior(config, sites, values[0].detach().cpu()), tuple(losses)


def adapt(
    backbone: Backbone,
    prior: GlobalPosterior,
    examples: Sequence[LabelledPrompt],
    settings: AdaptSettings,
    seed: int,
    on_step: Callable[[int], None] | None = None,
) -> Adaptation:
    """Test-time adaptation: `settings.steps` steps from theta on batches of the support, with a fresh optimiser."""
    batches = batch_order(len(examples), settings.batch_size, settings.steps, seed)
    posterior, losses = fit(
        backbone, prior, prepare(backbone, examples), settings, batches, seed, on_step=on_step
    )
    return Adaptation(posterior, losses, sum(example.prompt.tokens for example in examples))
