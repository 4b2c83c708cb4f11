"""Adaptation: K gradient steps on phi from theta, for many tasks in one batch (docs/method.md 3).

The loss of a step is sum_i E_q[NLL_i] + beta KL(phi || theta), with one posterior sample for each
example i of the batch. With options, the likelihood is normalised over them; without, it is the
likelihood of the label's tokens.

`AdaptRun` is one task's adaptation: its phi, optimiser state, step count and seed. `adapt_step`
makes a step of any number of runs, together. `resting_step` makes one of one run, in as many pieces
as it takes; other passes may run between them (`decoder/passes.py`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from abmll.adaptation.adamw import AdamW
from abmll.adaptation.loss import Batch, divergence, step_loss, training_draw
from abmll.adaptation.settings import AdaptSettings
from abmll.adaptation.support import Prepared
from abmll.decoder.backbone import Backbone
from abmll.decoder.layout import SiteTensors, unflatten
from abmll.decoder.passes import BACKWARD_COST, BLOCK_TOKENS, Pace, Resting, Works, add_gradients, gradient
from abmll.errors import FitDivergedError
from abmll.posterior.config import TemperatureRule
from abmll.posterior.noise.families import family_of
from abmll.posterior.posteriors import GlobalPosterior, TaskPosterior
from abmll.seeds import derive_seed
from abmll.similarity.features import Features

# Tokens that one backward pass may hold. A step on more sums the gradients of its parts.
TOKENS_PER_BACKWARD = 4096
# A fit has diverged whose loss was, in each of the last steps, over so many times that of the first
# step, or of 1 nat. At 20 nats a label has a probability of 2e-9.
EXPLODED, LAST_STEPS = 20.0, 3


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
    """Return the rows of each step: whole passes in random order, cut into batches."""
    rng = random.Random(seed)  # noqa: S311 - a reproducible draw, not a secret
    stream: list[int] = []
    batches = []
    for _ in range(steps):
        if len(stream) < batch_size:
            # What is left of this pass comes last in the next: no batch holds a row twice.
            stream += sorted(rng.sample(range(size), size), key=lambda i: i in stream)
        count = min(batch_size, size)
        batches.append(stream[:count])
        stream = stream[count:]
    return batches


def check_fit(losses: Sequence[float], values: Tensor) -> None:
    """Raise `FitDivergedError` where losses (nats an example) or values [P] are not finite, or
    explode.
    """
    remedy = "take a smaller learning rate or fewer steps"
    if not (all(map(math.isfinite, losses)) and bool(torch.isfinite(values).all())):
        raise FitDivergedError(f"the fit diverged: its losses or weights are no finite numbers; {remedy}")
    last = losses[-LAST_STEPS:]
    if last and min(last) > EXPLODED * max(1.0, losses[0]):
        raise FitDivergedError(
            f"the fit diverged: its loss went from {losses[0]:.3g} to {losses[-1]:.3g} nats an example; {remedy}"
        )


@dataclass
class AdaptRun:
    """One task's adaptation between two steps.

    The same arguments give the same steps, whatever runs beside it. `batches` has the numbers of
    the rows of each step, `values` [P] is phi so far, and `losses` are in nats per example, by
    step. `features` is the model's feature function, for the class examples of a posterior with a
    Gaussian process.
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
        """Return the numbers of the next step's rows."""
        return self.batches[len(self.losses)]

    def take(self, gradient: Tensor, nll: float) -> None:
        """Move phi by a step's `gradient` [P]; `nll` (nats) is the sum over its examples."""
        self.values = self.optimiser.update(self.values, gradient, self.settings.learning_rate)
        self.losses.append(nll / sum(len(self.prepared.rows[row]) for row in self.next_batch))

    @property
    def posterior(self) -> TaskPosterior:
        """Return phi as it stands, on the CPU.

        Without any step it is theta, with the class examples of the support.
        """
        config, prepared = self.prior.config, self.prepared
        temperature = config.temperature.after(
            max(1, len(prepared.examples) // prepared.questions), multiple_choice=prepared.multiple_choice
        )
        return TaskPosterior(
            replace(config, temperature=TemperatureRule(temperature, zero_shot=config.temperature.zero_shot)),
            self.prior.sites,
            self.values.cpu(),
            prepared.class_examples(self.features) if config.similarity is not None else (),
        )

    def result(self) -> Adaptation:
        """Return what was fitted. Raises as `check_fit`."""
        check_fit(self.losses, self.values)
        tokens = sum(example.prompt.tokens for example in self.prepared.examples)
        return Adaptation(self.posterior, tuple(self.losses), tokens, self.prepared.multiple_choice)


# A task of the step, its run, and the number of a row.
_Item: TypeAlias = tuple[int, AdaptRun, int]


class _Step:
    """One gradient step of some runs, while it is made: `gradient` [T, P] and `nll` (nats) so far."""

    def __init__(self, backbone: Backbone, runs: Sequence[AdaptRun]) -> None:
        self.backbone, self.runs = backbone, runs
        self.config, self.sites = runs[0].prior.config, runs[0].prior.sites
        self.family, self.rank = family_of(self.config.noise), self.config.layout.rank
        self.values = _stacked([run.values for run in runs])
        self.beta = torch.tensor([run.settings.beta for run in runs], device=self.values.device)
        self.theta = None
        if any(run.settings.beta for run in runs):
            theta = _stacked([run.prior.values.to(self.values.device) for run in runs])
            self.theta = unflatten(theta, self.sites, self.rank)
        self.kl_seeds = [derive_seed(run.seed, len(run.losses) + 1, "kl") for run in runs]
        self.gradient, self.nll = torch.zeros_like(self.values), [0.0] * len(runs)

    def passes(self, max_tokens: int) -> Iterator[Sequence[_Item]]:
        """Yield the step's rows by pass."""
        return _passes([(t, run, i) for t, run in enumerate(self.runs) for i in run.next_batch], max_tokens)

    def batch(self, items: Sequence[_Item]) -> Batch:
        """Return the batch of a pass."""
        return Batch.of([(t, run.prepared, i) for t, run, i in items], self.backbone.device)

    def add(self, items: Sequence[_Item], batch: Batch) -> None:
        """Add a pass, in one forward and backward pass."""
        values = self.values.detach().requires_grad_()
        phi = unflatten(values, self.sites, self.rank)
        loss = step_loss(
            self.backbone, self.config, batch, phi,
            seeds=self._seeds(items), prior=self.theta, kl_seeds=self.kl_seeds,
        )  # fmt: skip
        objective = loss.nll.sum() + (self._kl_weight(items) * loss.kl).sum()
        self.gradient += torch.autograd.grad(objective, values)[0]
        self._count(items, loss.nll)

    def add_resting(self, items: Sequence[_Item], batch: Batch, pace: Pace, *, keep: bool) -> Resting[None]:
        """Add a pass, with rests. `keep` is as in `passes.gradient`."""
        phi = [
            SiteTensors(*map(_leaf, _matrices(site)))
            for site in unflatten(self.values, self.sites, self.rank)
        ]
        leaves = [_matrices(site) for site in phi]
        for own, site in zip(leaves, unflatten(self.gradient, self.sites, self.rank), strict=True):
            for leaf, of_leaf in zip(own, _matrices(site), strict=True):
                leaf.grad = of_leaf  # so that what is added to it is added to the step
        draw = training_draw(self.backbone, self.config, batch, phi, self._seeds(items), self.theta)
        nll = yield from gradient(
            self.backbone, batch.hidden, batch.rows, draw, batch.nll, leaves, pace, keep=keep
        )
        if self.theta is not None:
            kl, _ = divergence(draw, phi, self.kl_seeds, self.theta)
            every = [leaf for own in leaves for leaf in own]
            objective = (self._kl_weight(items) * kl).sum()
            add_gradients(every, torch.autograd.grad(objective, every, allow_unused=True))
        self._count(items, nll)

    def finish(self) -> None:
        """Move every run."""
        for run, gradient_of_run, nll in zip(self.runs, self.gradient, self.nll, strict=True):
            run.take(gradient_of_run, nll)

    def _seeds(self, items: Sequence[_Item]) -> list[int]:
        return [derive_seed(run.seed, len(run.losses) + 1, i) for _, run, i in items]

    def _kl_weight(self, items: Sequence[_Item]) -> Tensor:
        """Return what the divergence of each task counts in a pass, [T].

        A divergence that is one number for the task is divided among the passes of its step.
        """
        if self.family.divergence_of_tokens:
            return self.beta
        in_pass = torch.bincount(torch.tensor([t for t, _, _ in items]), minlength=len(self.runs))
        sizes = torch.tensor([len(run.next_batch) for run in self.runs], device=self.values.device)
        return self.beta * in_pass.to(self.values.device) / sizes

    def _count(self, items: Sequence[_Item], nll: Tensor) -> None:
        for (t, _, _), own in zip(items, nll.tolist(), strict=True):
            self.nll[t] += own


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Return `tensors` in one; of only one, no copy."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))


def _matrices(site: SiteTensors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return site.mean_a, site.mean_b, site.spread_a, site.spread_b


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def adapt_step(backbone: Backbone, runs: Sequence[AdaptRun], max_tokens: int = TOKENS_PER_BACKWARD) -> None:
    """Make one gradient step of every run, in passes of at most `max_tokens`.

    Each run has its own rows, noise and optimiser. All have the same configuration and sites.
    Where this raises, no run has moved.
    """
    step = _Step(backbone, runs)
    for items in step.passes(max_tokens):
        step.add(items, step.batch(items))
    step.finish()


def can_rest(run: AdaptRun) -> bool:
    """Return whether the passes of a step may rest.

    Where the divergence is a sum over tokens, they may not: such a family draws noise in order.
    """
    return not family_of(run.prior.config.noise).divergence_of_tokens


def resting_step(backbone: Backbone, run: AdaptRun, max_tokens: int, pace: Pace, room: Room) -> Resting[None]:
    """Make one gradient step of a run as `adapt_step` does, with rests.

    A pass is kept for its gradient while there is `room` for its tokens, and is otherwise computed
    again, layer by layer. Where passes may not rest (`can_rest`), the step rests between them.
    """
    step = _Step(backbone, [run])
    works = Works.of(backbone)
    for items in _long_rows_alone(step.passes(max_tokens)):
        batch = step.batch(items)
        work = (1 + BACKWARD_COST) * works.of_pass(batch.rows, backbone.depth - backbone.layout.first_layer)
        if work <= pace.most or not can_rest(run):
            if pace.due(work):
                yield
            step.add(items, batch)
        else:
            with room.held(len(batch.hidden)) as keep:
                yield from step.add_resting(items, batch, pace, keep=keep)
    step.finish()


@dataclass
class Room:
    """How many tokens more may be kept for gradients at a time, of all passes that rest."""

    tokens: int

    @contextmanager
    def held(self, tokens: int) -> Iterator[bool]:
        """Take room for `tokens` until the end, if there is any."""
        fits = tokens <= self.tokens
        taken = tokens if fits else 0
        self.tokens -= taken
        try:
            yield fits
        finally:
            self.tokens += taken


def _long_rows_alone(passes: Iterable[Sequence[_Item]]) -> Iterator[Sequence[_Item]]:
    """Yield the passes, with rows that are computed in blocks in passes of their own."""
    for items in passes:
        long = [item for item in items if item[1].prepared.tokens([item[2]]) > BLOCK_TOKENS]
        together = [item for item in items if item not in long]
        if together:
            yield together
        yield from ([item] for item in long)


def _passes(work: Sequence[_Item], max_tokens: int) -> Iterator[list[_Item]]:
    """Yield rows, in order, in passes of at most `max_tokens`.

    A row that is longer is a pass of its own.
    """
    batch: list[_Item] = []
    total = 0
    for item in work:
        tokens = item[1].prepared.tokens([item[2]])
        if batch and total + tokens > max_tokens:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += tokens
    yield batch
