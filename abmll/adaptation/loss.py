"""The loss of one gradient step: NLL under one posterior sample for each example, and KL(phi || theta)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from abmll.adaptation.support import Prepared
from abmll.decoder.backbone import Backbone
from abmll.decoder.layout import Site, SiteTensors
from abmll.decoder.rows import Rows, by_prompt, collate
from abmll.posterior.config import AdapterConfig
from abmll.posterior.noise.output import OutputDraw
from abmll.posterior.noise.weight import SignedDraw, signed_draw, weight_divergence
from abmll.prediction.references import Reference

# Output rows of each weight matrix on which a step's KL is computed; the sum is scaled up (unbiased, see `weight_divergence`).
KL_ROWS = 16


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
