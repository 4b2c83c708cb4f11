"""The loss of one gradient step: NLL under one posterior sample a row, and KL(phi || theta)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from abmll.adaptation.support import Prepared
from abmll.decoder.backbone import Backbone
from abmll.decoder.layout import SiteTensors
from abmll.decoder.option_references import OptionReference
from abmll.decoder.rows import Rows, by_prompt, collate
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.noise.contract import TrainingDraw
from abmll.posterior.noise.families import family_of


@dataclass(frozen=True)
class Batch:
    """Rows of examples of one or more tasks for one pass.

    `hidden` [N, d] are trunk activations. `reference` is the option reference of all rows, `labels`
    those of all examples, and `examples` the number of examples of each row. `task_of_row` is
    ascending.
    """

    hidden: Tensor
    rows: Rows
    reference: OptionReference
    labels: Sequence[int]
    examples: Sequence[int]
    task_of_row: Sequence[int]

    @classmethod
    def of(cls, chosen: Sequence[tuple[int, Prepared, int]], device: torch.device) -> Batch:
        """Make the batch of `chosen`: (task, its support, number of the row), in that order."""
        members = [(prepared, i) for _, prepared, row in chosen for i in prepared.rows[row]]
        return cls(
            torch.cat([prepared.hidden[row] for _, prepared, row in chosen]),
            collate([prepared.group(row) for _, prepared, row in chosen], device),
            OptionReference.joined([prepared.references[i] for prepared, i in members]),
            [prepared.examples[i].label for prepared, i in members],
            [len(prepared.rows[row]) for _, prepared, row in chosen],
            [task for task, _, _ in chosen],
        )

    def nll(self, log_probs: Tensor) -> Tensor:
        """Return NLL [R] in nats from the log-probabilities [M] of the rows' segments.

        That of a row is the sum over its examples.
        """
        of_examples = negative_log_likelihood(self.reference.score(log_probs), self.rows, self.labels)
        return torch.stack([own.sum() for own in of_examples.split(list(self.examples))])


def negative_log_likelihood(scores: Tensor, rows: Rows, labels: Sequence[int]) -> Tensor:
    """Return NLL by prompt in nats from segment scores [M].

    It is over the options of a prompt, or of the only continuation where a prompt has one.
    """
    losses = []
    for row, label in zip(by_prompt(scores, rows), labels, strict=True):
        losses.append(-row[0] if len(row) == 1 else row.logsumexp(0) - row[label])
    return torch.stack(losses)


@dataclass(frozen=True)
class StepLoss:
    """The loss of one batch, in nats.

    `nll` [R] is by row, each under one posterior sample. `kl` is KL(phi || theta) and `log_prior`
    is log p(theta), both [T] by task, and zero where no prior was given.
    """

    nll: Tensor
    kl: Tensor
    log_prior: Tensor


def step_loss(
    backbone: Backbone,
    config: PosteriorConfig,
    batch: Batch,
    phi: Sequence[SiteTensors],
    *,
    seeds: Sequence[int],
    prior: Sequence[SiteTensors] | None = None,
    kl_seeds: Sequence[int] = (),
) -> StepLoss:
    """Return the NLL of T task posteriors `phi` [T, ...] on a batch, and the divergence from theta.

    Row i draws its own sample with `seeds[i]`. With `prior` (theta, [T, ...]), the divergence is
    the one of the noise family; where the family estimates it, `kl_seeds[t]` is the seed of task t.
    """
    draw = training_draw(backbone, config, batch, phi, seeds, prior)
    nll = batch.nll(backbone.log_probs(batch.hidden, batch.rows, draw))
    return StepLoss(nll, *divergence(draw, phi, kl_seeds, prior))


def training_draw(
    backbone: Backbone,
    config: PosteriorConfig,
    batch: Batch,
    phi: Sequence[SiteTensors],
    seeds: Sequence[int],
    prior: Sequence[SiteTensors] | None,
) -> TrainingDraw:
    """Return the draw of a batch: row i draws its own sample with `seeds[i]`."""
    # What is chosen after training was chosen on posteriors that were fitted without it.
    config = replace(config, noise=config.noise.in_training())
    return family_of(config.noise).training_draw(
        config,
        backbone.sites,
        phi,
        seeds=seeds,
        task_of_row=batch.task_of_row,
        row_tokens=batch.rows.lengths,
        dtype=batch.hidden.dtype,
        prior=prior,
    )


def divergence(
    draw: TrainingDraw,
    phi: Sequence[SiteTensors],
    seeds: Sequence[int],
    prior: Sequence[SiteTensors] | None,
) -> tuple[Tensor, Tensor]:
    """Return the divergence from theta and log p(theta), [T]; zeros without a `prior`."""
    if prior is None:
        zeros = phi[0].mean_a.new_zeros(len(phi[0].mean_a))
        return zeros, zeros
    return draw.divergence(seeds)
