"""Adaptation: K gradient steps on phi from theta on the support (docs/method.md 3), of many tasks in one batch.

The loss of a step is sum_i E_q[NLL_i] + beta KL(phi || theta), one posterior sample for each example i of the batch.
A task with options is scored by the options-normalised likelihood; free text by the likelihood of its tokens.

`AdaptRun` is one task's adaptation between steps: its phi, optimiser state, step count and seed. `adapt_step` moves
any number of them by one step in one forward and backward pass.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from abmll.backbone import Backbone
from abmll.features import Features
from abmll.head import Head, options_differ
from abmll.noise import OutputDraw, SignedDraw, signed_draw, weight_divergence
from abmll.options import Reference, references
from abmll.posterior import AdapterConfig, GlobalPosterior, Site, SiteTensors, TaskPosterior, unflatten
from abmll.prompting import EncodedPrompt
from abmll.rows import Rows, by_prompt, collate, packed_length, token_batches
from abmll.seeds import derive_seed

# Tokens that one backward pass may hold; a step on more is the sum of the gradients of its parts.
TOKENS_PER_BACKWARD = 4096
# Tokens of one trunk pass.
TOKENS_PER_TRUNK = 2048
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
    """The adapted posterior, the mean loss (nats per example) of each step, the tokens the support holds, and whether it is of
    multiple choice (`Prepared.multiple_choice`).
    """

    posterior: TaskPosterior
    losses: tuple[float, ...]
    support_tokens: int
    multiple_choice: bool = False


@dataclass(frozen=True)
class LabelledPrompt:
    """A support example in tokens; `label` is the index of its output among the continuations."""

    prompt: EncodedPrompt
    label: int


@dataclass(frozen=True)
class Prepared:
    """Support with its trunk activations [tokens, d] and its options' references by example, computed once for all steps.

    `features` are what a Gaussian process beside the adapter sees.
    """

    examples: Sequence[LabelledPrompt]
    hidden: Sequence[Tensor]
    references: Sequence[Reference]
    features: Features = field(default_factory=Features)

    def head(self) -> Head | None:
        """What a Gaussian process learns from (`head.py`); None without fixed classes."""
        prompts, labels = [e.prompt for e in self.examples], [e.label for e in self.examples]
        return Head.of(prompts, self.hidden, labels, self.features)

    @property
    def multiple_choice(self) -> bool:
        """Whether every example has options, and they differ from one to another."""
        prompts = [example.prompt for example in self.examples]
        return all(len(prompt.continuations) > 1 for prompt in prompts) and options_differ(prompts)

    def tokens(self, chosen: Sequence[int]) -> int:
        """Tokens of the chosen examples."""
        return sum(len(self.hidden[i]) for i in chosen)


@dataclass(frozen=True)
class Batch:
    """Examples of one or more tasks for one pass: trunk activations [N, d], rows, their options' reference, labels, and each
    row's task (ascending).
    """

    hidden: Tensor
    rows: Rows
    reference: Reference
    labels: Sequence[int]
    task_of_row: Sequence[int]

    @classmethod
    def of(cls, chosen: Sequence[tuple[int, Prepared, int]], device: torch.device) -> Batch:
        """The batch of (task, its support, example number) in that order."""
        examples = [prepared.examples[i] for _, prepared, i in chosen]
        return cls(
            torch.cat([prepared.hidden[i] for _, prepared, i in chosen]),
            collate([example.prompt for example in examples], device),
            Reference.joined([prepared.references[i] for _, prepared, i in chosen]),
            [example.label for example in examples],
            [task for task, _, _ in chosen],
        )


def prepare(
    backbone: Backbone,
    examples: Sequence[LabelledPrompt],
    max_tokens: int = TOKENS_PER_TRUNK,
    features: Features | None = None,
) -> Prepared:
    """Run the trunk over the support in passes of at most `max_tokens`, and the base model over options that need a reference."""
    prompts = [example.prompt for example in examples]
    hidden = trunk_states(backbone, prompts, max_tokens)
    return Prepared(examples, hidden, references(backbone, prompts), features or Features())


def trunk_states(
    backbone: Backbone, prompts: Sequence[EncodedPrompt], max_tokens: int = TOKENS_PER_TRUNK
) -> list[Tensor]:
    """The trunk's states [tokens, d] of each prompt with its continuations, in passes of at most `max_tokens`."""
    hidden: list[Tensor] = [torch.empty(0)] * len(prompts)
    for chunk in token_batches([packed_length(prompt) for prompt in prompts], max_tokens):
        rows = collate([prompts[i] for i in chunk], backbone.device)
        for i, states in zip(chunk, backbone.trunk(rows).split(rows.lengths), strict=True):
            hidden[i] = states
    return hidden


def negative_log_likelihood(scores: Tensor, rows: Rows, labels: Sequence[int]) -> Tensor:
    """NLL [R] in nats from segment scores [M]: over a row's options, or of its only continuation."""
    losses = []
    for row, label in zip(by_prompt(scores, rows), labels, strict=True):
        losses.append(-row[0] if len(row) == 1 else row.logsumexp(0) - row[label])
    return torch.stack(losses)


@dataclass(frozen=True)
class StepLoss:
    """Of one batch, in nats: NLL [R] by example under one posterior sample each; KL(phi || theta) and log p(theta) [T] by task.

    The last two are zero where no prior was given.
    """

    nll: Tensor
    kl: Tensor
    log_prior: Tensor


def step_loss(
    backbone: Backbone,
    batch: Batch,
    phi: Sequence[SiteTensors],
    *,
    seeds: Sequence[int],
    prior: Sequence[SiteTensors] | None = None,
    kl_seeds: Sequence[int] = (),
) -> StepLoss:
    """Expected NLL of T task posteriors `phi` [T, ...] on a batch of their examples, and their divergence from theta.

    Every row draws its own sample from `seeds[i]`. With `prior` (theta, [T, ...]) the divergence from it is added up:
    over tokens and units for the `output` family, over weights (estimated on rows chosen by `kl_seeds[t]`) for `weight`.
    """
    # The noise scale is calibrated for prediction, on posteriors that were fitted without it.
    config, sites = replace(backbone.config, noise_scale=1.0), backbone.sites
    rows, tasks = batch.rows, batch.task_of_row
    draw: OutputDraw | SignedDraw
    if config.noise == "output":
        draw = OutputDraw(config, phi, tasks, rows.lengths, seeds, prior)
    else:
        draw = signed_draw(
            config,
            sites,
            phi,
            seeds=seeds,
            task_of_row=tasks,
            row_tokens=rows.lengths,
            dtype=batch.hidden.dtype,
        )
    scores = batch.reference.score(backbone.log_probs(batch.hidden, rows, draw))
    nll = negative_log_likelihood(scores, rows, batch.labels)
    kl = log_prior = nll.new_zeros(len(phi[0].mean_a))
    if prior is None:
        return StepLoss(nll, kl, log_prior)
    if isinstance(draw, OutputDraw):
        index = torch.tensor(tasks, device=nll.device)
        return StepLoss(nll, kl.index_add(0, index, draw.kl), log_prior.index_add(0, index, draw.log_prior))
    by_task = [
        weight_divergences(config, sites, _one(phi, t), _one(prior, t), seed)
        for t, seed in enumerate(kl_seeds)
    ]
    kl, log_prior = (torch.cat(parts) for parts in zip(*by_task, strict=True))
    return StepLoss(nll, kl, log_prior)


def _one(tensors: Sequence[SiteTensors], task: int) -> list[SiteTensors]:
    """The matrices of one task, as [1, ...]; of the only one there is (theta for every task) where there is but one."""
    i = min(task, len(tensors[0].mean_a) - 1)
    part = slice(i, i + 1)
    return [SiteTensors(t.mean_a[part], t.mean_b[part], t.spread_a[part], t.spread_b[part]) for t in tensors]


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


@dataclass
class AdaptRun:
    """One task's adaptation between two steps; the same arguments give the same steps whatever runs beside it.

    `batches` names the examples of each step, `values` [P] is phi so far, `losses` are in nats per example, by step.
    """

    prior: GlobalPosterior
    prepared: Prepared
    settings: AdaptSettings
    batches: Sequence[Sequence[int]]
    seed: int
    values: Tensor
    optimiser: AdamW
    losses: list[float] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        backbone: Backbone,
        prior: GlobalPosterior,
        prepared: Prepared,
        settings: AdaptSettings,
        batches: Sequence[Sequence[int]],
        seed: int,
        optimiser: AdamW | None = None,
    ) -> AdaptRun:
        """phi = theta; `optimiser` may carry moments over from earlier tasks, the default is a fresh one."""
        values = prior.values.to(backbone.device, copy=True)
        return cls(prior, prepared, settings, batches, seed, values, optimiser or AdamW.zeros_like(values))

    @property
    def done(self) -> bool:
        """Whether all steps are made."""
        return len(self.losses) == len(self.batches)

    @property
    def next_batch(self) -> Sequence[int]:
        """The examples of the next step."""
        return self.batches[len(self.losses)]

    @property
    def posterior(self) -> TaskPosterior:
        """phi as it stands, on the CPU; without any step it is theta, which has no head."""
        config = self.prior.config.after(
            len(self.prepared.examples), multiple_choice=self.prepared.multiple_choice
        )
        has_head = config.head_weight and self.batches
        head = self.prepared.head() if has_head else None
        return TaskPosterior(config, self.prior.sites, self.values.cpu(), head)

    def result(self) -> Adaptation:
        """What was fitted."""
        tokens = sum(example.prompt.tokens for example in self.prepared.examples)
        return Adaptation(self.posterior, tuple(self.losses), tokens, self.prepared.multiple_choice)


def adapt_step(backbone: Backbone, runs: Sequence[AdaptRun], max_tokens: int = TOKENS_PER_BACKWARD) -> None:
    """One gradient step of every run, on its own examples with its own noise and optimiser, in passes of `max_tokens`."""
    config, sites, rank = runs[0].prior.config, runs[0].prior.sites, runs[0].prior.config.rank
    values = torch.stack([run.values for run in runs]).requires_grad_()
    beta = torch.tensor([run.settings.beta for run in runs], device=values.device)
    theta = None
    if any(run.settings.beta for run in runs):
        theta = unflatten(torch.stack([run.prior.values.to(values.device) for run in runs]), sites, rank)
    gradient = torch.zeros_like(values)
    totals = [0.0] * len(runs)
    work = [(t, run, i) for t, run in enumerate(runs) for i in run.next_batch]
    for part in _parts(work, max_tokens):
        loss = step_loss(
            backbone,
            Batch.of([(t, run.prepared, i) for t, run, i in part], backbone.device),
            unflatten(values, sites, rank),
            seeds=[derive_seed(run.seed, len(run.losses) + 1, i) for _, run, i in part],
            prior=theta,
            kl_seeds=[derive_seed(run.seed, len(run.losses) + 1, "kl") for run in runs],
        )
        # The divergence of the `weight` family is the task's, not the part's: each part bears its share.
        in_part = torch.bincount(torch.tensor([t for t, _, _ in part]), minlength=len(runs)).to(values.device)
        sizes = torch.tensor([len(run.next_batch) for run in runs], device=values.device)
        share = in_part / sizes if config.noise == "weight" else torch.ones_like(beta)
        objective = loss.nll.sum() + (beta * share * loss.kl).sum()
        gradient += torch.autograd.grad(objective, values)[0]
        for (t, _, _), nll in zip(part, loss.nll.tolist(), strict=True):
            totals[t] += nll
    for t, run in enumerate(runs):
        run.values = run.optimiser.update(run.values, gradient[t], run.settings.learning_rate)
        run.losses.append(totals[t] / len(run.next_batch))


def _parts(
    work: Sequence[tuple[int, AdaptRun, int]], max_tokens: int
) -> Iterator[list[tuple[int, AdaptRun, int]]]:
    """Cut the examples of a step, in order, into passes of at most `max_tokens` (or one longer example)."""
    part: list[tuple[int, AdaptRun, int]] = []
    total = 0
    for item in work:
        tokens = item[1].prepared.tokens([item[2]])
        if part and total + tokens > max_tokens:
            yield part
            part, total = [], 0
        part.append(item)
        total += tokens
    yield part
