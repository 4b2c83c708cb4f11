"""Adaptation: K gradient steps on phi from theta, for many tasks in one batch (docs/method.md 3).

The loss of a step is sum_i E_q[NLL_i] + beta KL(phi || theta), with one posterior sample for each
example i of the batch. With options, the likelihood is normalised over them; without, it is the
likelihood of the label's tokens.

`AdaptRun` is one task's adaptation: its phi, optimiser state, step count and seed. A step is the sum
of the gradients of its parts, so that a step on many or long examples can rest between two parts.
`adapt_parts` makes one part of any number of runs, in one forward and backward pass; `adapt_step`
makes whole steps.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor

from abmll.adaptation.adamw import AdamW
from abmll.adaptation.loss import Batch, step_loss
from abmll.adaptation.settings import AdaptSettings
from abmll.adaptation.support import Prepared
from abmll.decoder.backbone import Backbone
from abmll.decoder.layout import unflatten
from abmll.errors import FitDivergedError
from abmll.posterior.config import TemperatureRule
from abmll.posterior.noise.families import family_of
from abmll.posterior.posteriors import GlobalPosterior, TaskPosterior
from abmll.seeds import derive_seed
from abmll.similarity.features import Features

# Tokens that one backward pass may hold. A step on more sums the gradients of its parts.
TOKENS_PER_BACKWARD = 4096


@dataclass(frozen=True)
class Adaptation:
    """An adapted posterior and how it was made.

    `losses` has the mean loss of each step, in nats per example. `support_tokens` is the number of
    tokens of the support's prompts. `multiple_choice` is `Prepared.multiple_choice`.
    """

    posterior: TaskPosterior
    losses: tuple[float, ...]
    support_tokens: int
    multiple_choice: bool = False


def batch_order(size: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Return the examples of each step: whole passes in random order, cut into batches."""
    rng = random.Random(seed)  # noqa: S311 - a reproducible draw, not a secret
    stream: list[int] = []
    batches = []
    for _ in range(steps):
        if len(stream) < batch_size:
            # What is left of this pass comes last in the next: no batch holds an example twice.
            stream += sorted(rng.sample(range(size), size), key=lambda i: i in stream)
        count = min(batch_size, size)
        batches.append(stream[:count])
        stream = stream[count:]
    return batches


@dataclass
class AdaptRun:
    """One task's adaptation between two parts of a step.

    The same arguments give the same steps, whatever runs beside it. `batches` has the numbers of
    the examples of each step, `values` [P] is phi so far, and `losses` are in nats per example, by
    step. `features` is the model's feature function, for the class examples of a posterior with a
    Gaussian process. `gradient` [P] and `nll` (nats) are sums over the `made` examples of a step that
    is not finished.
    """

    prior: GlobalPosterior
    prepared: Prepared
    settings: AdaptSettings
    batches: Sequence[Sequence[int]]
    seed: int
    values: Tensor
    optimiser: AdamW
    features: Features = field(default_factory=Features)
    losses: list[float] = field(default_factory=list)
    gradient: Tensor | None = None
    nll: float = 0.0
    made: int = 0

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
        features: Features | None = None,
    ) -> AdaptRun:
        """Return a run with phi = theta.

        `optimiser` may have moments of earlier tasks; by default it is fresh.
        """
        values = prior.values.to(backbone.device, copy=True)
        optimiser = optimiser or AdamW.zeros_like(values)
        return cls(prior, prepared, settings, batches, seed, values, optimiser, features or Features())

    @property
    def done(self) -> bool:
        """Return whether all steps are made."""
        return len(self.losses) == len(self.batches)

    @property
    def next_batch(self) -> Sequence[int]:
        """Return the numbers of the next step's examples."""
        return self.batches[len(self.losses)]

    def next_part(self, max_tokens: int) -> Sequence[int]:
        """Return the next examples of the step: those that fit `max_tokens` together, at least one."""
        left = self.next_batch[self.made :]
        totals = accumulate(self.prepared.tokens([i]) for i in left)
        return left[: max(1, sum(total <= max_tokens for total in totals))]

    def take(self, examples: int, gradient: Tensor, nll: float) -> None:
        """Add a part of the step, and move phi where the step is complete."""
        self.gradient = gradient if self.gradient is None else self.gradient + gradient
        self.nll, self.made = self.nll + nll, self.made + examples
        if self.made == len(self.next_batch):
            self.values = self.optimiser.update(self.values, self.gradient, self.settings.learning_rate)
            self.losses.append(self.nll / self.made)
            self.gradient, self.nll, self.made = None, 0.0, 0

    @property
    def posterior(self) -> TaskPosterior:
        """Return phi as it stands, on the CPU.

        Without any step it is theta, with the class examples of the support.
        """
        config, prepared = self.prior.config, self.prepared
        temperature = config.temperature.after(
            len(prepared.examples), multiple_choice=prepared.multiple_choice
        )
        return TaskPosterior(
            replace(config, temperature=TemperatureRule(temperature)),
            self.prior.sites,
            self.values.cpu(),
            prepared.class_examples(self.features) if config.similarity is not None else None,
        )

    def result(self) -> Adaptation:
        """Return what was fitted. Raises `FitDivergedError` unless its losses and values are finite."""
        if not (all(map(math.isfinite, self.losses)) and bool(torch.isfinite(self.values).all())):
            raise FitDivergedError(
                "the fit diverged: its losses or weights are no finite numbers; "
                "take a smaller learning rate or fewer steps"
            )
        tokens = sum(example.prompt.tokens for example in self.prepared.examples)
        return Adaptation(self.posterior, tuple(self.losses), tokens, self.prepared.multiple_choice)


def adapt_step(backbone: Backbone, runs: Sequence[AdaptRun], max_tokens: int = TOKENS_PER_BACKWARD) -> None:
    """Make one gradient step of every run, in passes of at most `max_tokens`.

    Each run has its own examples, noise and optimiser. All have the same configuration and sites.
    """
    adapt_parts(backbone, [(run, run.next_batch[run.made :]) for run in runs], max_tokens)


def adapt_parts(
    backbone: Backbone,
    parts: Sequence[tuple[AdaptRun, Sequence[int]]],
    max_tokens: int = TOKENS_PER_BACKWARD,
) -> None:
    """Make a part of the step of every run, on the examples beside it, in passes of at most `max_tokens`.

    Where this raises, no run has moved.
    """
    runs = [run for run, _ in parts]
    config, sites = runs[0].prior.config, runs[0].prior.sites
    family, rank = family_of(config.noise), config.layout.rank
    values = torch.stack([run.values for run in runs]).requires_grad_()
    beta = torch.tensor([run.settings.beta for run in runs], device=values.device)
    theta = None
    if any(run.settings.beta for run in runs):
        theta = unflatten(torch.stack([run.prior.values.to(values.device) for run in runs]), sites, rank)
    gradient = torch.zeros_like(values)
    totals = [0.0] * len(runs)
    work = [(t, run, i) for t, (run, examples) in enumerate(parts) for i in examples]
    for batch in _passes(work, max_tokens):
        loss = step_loss(
            backbone,
            config,
            Batch.of([(t, run.prepared, i) for t, run, i in batch], backbone.device),
            unflatten(values, sites, rank),
            seeds=[derive_seed(run.seed, len(run.losses) + 1, i) for _, run, i in batch],
            prior=theta,
            kl_seeds=[derive_seed(run.seed, len(run.losses) + 1, "kl") for run in runs],
        )
        # A divergence that is one number for the task is divided among the passes of its step.
        in_pass = torch.bincount(torch.tensor([t for t, _, _ in batch]), minlength=len(runs)).to(
            values.device
        )
        sizes = torch.tensor([len(run.next_batch) for run in runs], device=values.device)
        weight = torch.ones_like(beta) if family.divergence_of_tokens else in_pass / sizes
        objective = loss.nll.sum() + (beta * weight * loss.kl).sum()
        gradient += torch.autograd.grad(objective, values)[0]
        for (t, _, _), nll in zip(batch, loss.nll.tolist(), strict=True):
            totals[t] += nll
    for t, (run, examples) in enumerate(parts):
        run.take(len(examples), gradient[t], totals[t])


def _passes(
    work: Sequence[tuple[int, AdaptRun, int]], max_tokens: int
) -> Iterator[list[tuple[int, AdaptRun, int]]]:
    """Yield examples, in order, in passes of at most `max_tokens`.

    An example that is longer is a pass of its own.
    """
    batch: list[tuple[int, AdaptRun, int]] = []
    total = 0
    for item in work:
        tokens = item[1].prepared.tokens([item[2]])
        if batch and total + tokens > max_tokens:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += tokens
    yield batch
