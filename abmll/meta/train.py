"""ABMLL meta-training (docs/method.md 4): task after task, phi moves from theta on the task's data and theta follows.

theta enters the objective through KL(phi || theta) and its prior alone. Two outer rules minimise them:

`adamw`: one AdamW step on beta KL + (beta / M) (-log p(theta)), as published.
`natural`: the natural-gradient step on the same KL. With N(mu_theta, sigma_theta^2) and step e it is
theta <- theta + e (phi - theta), taken in the LoRA factors (the prior's pull on mu is a factor sigma_theta^2 / M of
the KL's, below 1e-6, and is dropped). It does not turn a small, noisy gradient into a full-size step in every
coordinate, as AdamW does, and is Reptile with a posterior.

All randomness derives from the seed and the visit's number, so a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from abmll.adapt import AdamW, AdaptSettings, Batch, LabelledPrompt, batch_order, fit, prepare, step_loss
from abmll.errors import AbmllError, PromptTooLongError
from abmll.model import FewShotModel
from abmll.noise import derive_seed
from abmll.posterior import GlobalPosterior, unflatten
from abmll.rows import packed_length
from abmll.tasks import Task, draw_support


@dataclass(frozen=True)
class MetaSettings:
    """One meta-training run. `inner` is the fit of phi in every visit; each of its steps sees new examples of the task.

    `outer_rate` is AdamW's learning rate or the natural rule's step e, moved linearly to `final_outer_rate` over the
    run. `average_from` is the share of visits after which the shipped theta, an average over visits, starts to form.
    `max_row_tokens` leaves out longer examples. `carry_moments` keeps the inner AdamW's moments across tasks, as the
    released code does.
    """

    visits: int = 400
    inner: AdaptSettings = field(default_factory=AdaptSettings)
    outer: Literal["natural", "adamw"] = "natural"
    outer_rate: float = 0.5
    final_outer_rate: float = 0.1
    prior_beta: float = 0.0
    average_from: float = 0.5
    carry_moments: bool = False
    max_row_tokens: int = 384
    seed: int = 0
    checkpoint_every: int = 25


@dataclass
class MetaState:
    """What a run holds between visits: theta [P], the sum of visited thetas and its count, and both optimisers' state."""

    visit: int
    theta: Tensor
    average: Tensor
    averaged: int
    inner: AdamW
    outer: AdamW

    @classmethod
    def start(cls, theta: Tensor) -> MetaState:
        """The state before the first visit."""
        return cls(0, theta, torch.zeros_like(theta), 0, AdamW.zeros_like(theta), AdamW.zeros_like(theta))

    def result(self) -> Tensor:
        """The theta to ship: the average where one has formed."""
        return self.average / self.averaged if self.averaged else self.theta

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        tensors = {
            "theta": self.theta, "average": self.average,
            "inner.first": self.inner.first, "inner.second": self.inner.second,
            "outer.first": self.outer.first, "outer.second": self.outer.second,
        }  # fmt: skip
        counts = {
            "visit": self.visit,
            "averaged": self.averaged,
            "inner": self.inner.step,
            "outer": self.outer.step,
        }
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, metadata={"counts": json.dumps(counts)})
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> MetaState:
        """Read a checkpoint that `save` wrote."""
        from safetensors import safe_open  # noqa: PLC0415 - only resuming needs it

        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            counts = json.loads(file.metadata()["counts"])
        return cls(
            counts["visit"], tensors["theta"], tensors["average"], counts["averaged"],
            AdamW(tensors["inner.first"], tensors["inner.second"], counts["inner"]),
            AdamW(tensors["outer.first"], tensors["outer.second"], counts["outer"]),
        )  # fmt: skip


def task_order(names: Sequence[str], visits: int, seed: int) -> list[str]:
    """Which task each visit trains on: all of them in a new random order, again and again."""
    per_epoch = len(names)
    order: list[str] = []
    for epoch in range(-(-visits // per_epoch)):
        order += [
            names[i] for (i,) in batch_order(per_epoch, 1, per_epoch, derive_seed(seed, "epoch", epoch))
        ]
    return order[:visits]


def encode_pool(
    model: FewShotModel, task: Task, size: int, settings: MetaSettings, visit: int
) -> list[LabelledPrompt]:
    """`size` examples of the task that fit `max_row_tokens`, classes balanced, chosen for this visit."""
    seed = derive_seed(settings.seed, "pool", visit)
    encoded: list[LabelledPrompt] = []
    for example in draw_support(task.train, min(len(task.train), size * 3), seed):
        try:
            prompt = model.encoder.encode_example(example)
        except PromptTooLongError:
            continue
        if packed_length(prompt) <= settings.max_row_tokens:
            label = example.options.index(example.output) if example.options else 0
            encoded.append(LabelledPrompt(prompt, label))
        if len(encoded) == size:
            break
    if not encoded:
        raise AbmllError(f"no example of {task.name} fits {settings.max_row_tokens} tokens")
    return encoded


def meta_train(
    model: FewShotModel, tasks: Sequence[Task], settings: MetaSettings, folder: Path, *, resume: bool = True
) -> Iterator[dict[str, Any]]:
    """Run the visits, yielding each one's metrics, which also go to `metrics.jsonl`; `folder` holds the checkpoint.

    After the last visit `trained_prior` reads the result. With `resume`, goes on from the checkpoint if there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / "checkpoint.safetensors", folder / "metrics.jsonl"
    _same_settings(folder / "settings.json", settings, [task.name for task in tasks])
    if resume and checkpoint.exists():
        state = MetaState.load(checkpoint)
        kept = [line for line in log.read_text().splitlines() if json.loads(line)["visit"] <= state.visit]
        log.write_text("".join(line + "\n" for line in kept))
    else:
        state = MetaState.start(model.prior.values.clone())
        log.write_text("")
    by_name = {task.name: task for task in tasks}
    order = task_order(list(by_name), settings.visits, settings.seed)
    with log.open("a") as file:
        while state.visit < settings.visits:
            metrics = _visit(model, by_name[order[state.visit]], len(tasks), settings, state)
            file.write(json.dumps(metrics) + "\n")
            file.flush()
            if state.visit % settings.checkpoint_every == 0 or state.visit == settings.visits:
                state.save(checkpoint)
            yield metrics


def trained_prior(model: FewShotModel, folder: Path) -> GlobalPosterior:
    """theta as the run in `folder` left it at its last checkpoint."""
    return GlobalPosterior(
        model.prior.config, model.prior.sites, MetaState.load(folder / "checkpoint.safetensors").result()
    )


def _visit(
    model: FewShotModel, task: Task, tasks: int, settings: MetaSettings, state: MetaState
) -> dict[str, Any]:
    started, inner = time.perf_counter(), settings.inner
    state.visit += 1
    seed = derive_seed(settings.seed, "visit", state.visit)
    pool = encode_pool(model, task, inner.steps * inner.batch_size, settings, state.visit)
    batches = batch_order(len(pool), inner.batch_size, inner.steps, seed)
    prepared = prepare(model.backbone, pool)
    prior = GlobalPosterior(model.prior.config, model.prior.sites, state.theta)
    moments = state.inner if settings.carry_moments else None
    phi, losses = fit(model.backbone, prior, prepared, inner, batches, seed, moments)
    done = (state.visit - 1) / max(1, settings.visits - 1)
    rate = settings.outer_rate + done * (settings.final_outer_rate - settings.outer_rate)
    metrics: dict[str, Any] = {
        "visit": state.visit,
        "task": task.name,
        "losses": [round(loss, 4) for loss in losses],
    }
    if settings.outer == "natural":
        move = phi.values - state.theta
        state.theta = state.theta + rate * move
        metrics["moved"] = float(move.norm())
    else:
        state.theta, metrics["kl"] = _outer_adamw(
            model,
            Batch.of([(0, prepared, i) for i in batches[-1]], model.backbone.device),
            phi.values,
            tasks,
            settings,
            state,
            rate,
        )
    if state.visit > settings.average_from * settings.visits:
        state.average += state.theta
        state.averaged += 1
    return {**metrics, "rate": round(rate, 5), "seconds": round(time.perf_counter() - started, 2)}


def _outer_adamw(
    model: FewShotModel,
    batch: Batch,
    phi: Tensor,
    tasks: int,
    settings: MetaSettings,
    state: MetaState,
    rate: float,
) -> tuple[Tensor, float]:
    """One AdamW step on theta of beta KL(phi || theta) - (beta / M) log p(theta), on the last inner batch with fresh noise."""
    config, sites, device = model.prior.config, model.prior.sites, model.backbone.device
    theta = state.theta.to(device).requires_grad_()
    loss = step_loss(
        model.backbone,
        batch,
        unflatten(phi.to(device)[None], sites, config.rank),
        seeds=[derive_seed(settings.seed, "outer", state.visit, i) for i in range(len(batch.labels))],
        prior=unflatten(theta[None], sites, config.rank),
        kl_seeds=[derive_seed(settings.seed, "outer", state.visit)],
    )
    objective = settings.prior_beta * (loss.kl.sum() - loss.log_prior.sum() / tasks)
    (gradient,) = torch.autograd.grad(objective, theta)
    return state.outer.update(theta.detach(), gradient, rate).cpu(), float(loss.kl.detach().sum())


def _same_settings(path: Path, settings: MetaSettings, names: Sequence[str]) -> None:
    """Record what the run is, and refuse to resume a different one."""
    record = {"settings": asdict(settings), "tasks": list(names)}
    if path.exists() and json.loads(path.read_text()) != record:
        raise AbmllError(
            f"{path.parent.name} holds a run with other settings or tasks: choose another folder"
        )
    path.write_text(json.dumps(record, indent=1))
