"""ABMLL meta-training (docs/method.md 4): task after task, phi moves from theta on the task's data and theta follows.

theta enters the objective through KL(phi || theta) and its prior alone. Two outer rules minimise them:

`adamw`: one AdamW step on beta KL + (beta / M) (-log p(theta)), as published.
`natural`: the natural-gradient step on the same KL. With N(mu_theta, sigma_theta^2) and step e it is
theta <- theta + e (phi - theta), taken in the LoRA factors (the prior's pull on mu is a factor sigma_theta^2 / M of
the KL's, below 1e-6, and is dropped). It does not turn a small, noisy gradient into a full-size step in every
coordinate, as AdamW does, and is Reptile with a posterior.

Three more are baselines, without noise or KL (`POINT_RULES`; theta is a point, see `GlobalPosterior.without_noise`):

`reptile`: theta <- theta + e (phi - theta) (Nichol et al. 2018).
`structured`: theta <- phi: task after task with one optimiser, nothing copied back ("Structured LoRA" of the ABMLL paper).
`fomaml`: one AdamW step on theta along the gradient of the query's NLL at phi (first-order MAML, Finn et al. 2017).

A visit is to one task or to several (`tasks_per_visit`), which then start from the same theta and are fitted in one batch: theta
follows the mean of what they ask for.

All randomness derives from the seed and the visit's number, so a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from abmll.adaptation.adamw import AdamW
from abmll.adaptation.loss import Batch, step_loss
from abmll.adaptation.run import TOKENS_PER_BACKWARD, AdaptRun, adapt_step, batch_order
from abmll.adaptation.settings import AdaptSettings
from abmll.adaptation.support import Prepared, prepare
from abmll.decoder.layout import unflatten
from abmll.errors import AbmllError
from abmll.meta.episodes import Likelihood, choose_encoder, fitting_examples
from abmll.model import FewShotModel
from abmll.posterior.posteriors import GlobalPosterior
from abmll.seeds import derive_seed
from abmll.text.prompting import LabelledPrompt, PromptTemplate
from abmll.text.tasks import Task

OuterRule = Literal["natural", "adamw", "reptile", "structured", "fomaml"]
POINT_RULES = ("reptile", "structured", "fomaml")
GRADIENT_RULES = ("adamw", "fomaml")


@dataclass(frozen=True)
class MetaSettings:
    """One meta-training run. `inner` is the fit of phi in every visit; each of its steps sees new examples of the task.

    `outer_rate` is AdamW's learning rate or the natural rule's step e, moved linearly to `final_outer_rate` over the
    run. `average_from` is the share of visits after which the shipped theta, an average over visits, starts to form.
    `tasks_per_visit` is how many tasks a visit fits side by side; more cost a GPU little.
    `max_row_tokens` leaves out longer examples. `carry_moments` keeps the inner AdamW's moments across tasks, as the
    released code does.

    `query` draws one more batch of new examples for the outer step of `adamw` and `fomaml`, which else reuse the last inner
    batch; `adamw` then also follows the query's NLL, to first order (as ABML does, Ravi and Beatson 2019).
    `uniform` is the share of visits whose examples are drawn as the task has them, not with classes as equal as can be.
    `likelihood` `tokens` fits the label's tokens as free text is fitted, and not its share among the options.
    `shuffle_options` shows options in a new order in every example, `templates` are prompt templates that visits take turns
    with at random, beside the model's own. `ema` is the decay per visit of an exponential average of theta, which is then
    what ships in place of the plain average.
    """

    visits: int = 400
    tasks_per_visit: int = 1
    inner: AdaptSettings = field(default_factory=AdaptSettings)
    outer: OuterRule = "natural"
    outer_rate: float = 0.5
    final_outer_rate: float = 0.1
    prior_beta: float = 0.0
    average_from: float = 0.5
    carry_moments: bool = False
    max_row_tokens: int = 384
    seed: int = 0
    checkpoint_every: int = 25
    query: bool = False
    uniform: float = 0.0
    likelihood: Likelihood = "options"
    shuffle_options: bool = False
    templates: tuple[PromptTemplate, ...] = ()
    ema: float | None = None


def check_settings(settings: MetaSettings, prior: GlobalPosterior) -> None:
    """Raise `AbmllError` for settings that contradict each other, or a theta with noise under a rule for points."""
    if settings.query and settings.outer not in GRADIENT_RULES:
        raise AbmllError(
            f"the outer rule {settings.outer} takes no gradient on a query batch: leave `query` out"
        )
    if settings.tasks_per_visit > 1 and settings.carry_moments:
        raise AbmllError("`carry_moments` takes the tasks one after another: one task a visit")
    if settings.outer in POINT_RULES:
        if settings.inner.beta or settings.prior_beta:
            raise AbmllError(f"the outer rule {settings.outer} has no KL: set beta and prior_beta to 0")
        if not prior.config.noise.is_point:
            raise AbmllError(f"the outer rule {settings.outer} is for a theta without noise")


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
        """The state before the first visit, where `theta` lies."""
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
    def load(cls, path: Path, device: torch.device | str = "cpu") -> MetaState:
        """Read a checkpoint that `save` wrote."""
        from safetensors import safe_open  # noqa: PLC0415 - only resuming needs it

        tensors = load_file(path, device=str(device))
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


def meta_train(
    model: FewShotModel,
    tasks: Sequence[Task],
    settings: MetaSettings,
    folder: Path,
    *,
    resume: bool = True,
    tokens_per_pass: int = TOKENS_PER_BACKWARD,
) -> Iterator[dict[str, Any]]:
    """Run the visits, yielding each one's metrics, which also go to `metrics.jsonl`; `folder` holds the checkpoint.

    After the last visit `trained_prior` reads the result. With `resume`, goes on from the checkpoint if there is one.
    """
    check_settings(settings, model.prior)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / "checkpoint.safetensors", folder / "metrics.jsonl"
    _same_settings(folder / "settings.json", settings, [task.name for task in tasks])
    if resume and checkpoint.exists():
        state = MetaState.load(checkpoint, model.backbone.device)
        kept = [line for line in log.read_text().splitlines() if json.loads(line)["visit"] <= state.visit]
        log.write_text("".join(line + "\n" for line in kept))
    else:
        state = MetaState.start(model.prior.values.to(model.backbone.device, copy=True))
        log.write_text("")
    run = _Run(model, {task.name: task for task in tasks}, settings, state, tokens_per_pass)
    with log.open("a") as file:
        while state.visit < settings.visits:
            metrics = run.visit()
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


@dataclass(frozen=True)
class _Episode:
    """What one task brings to a visit: examples ready for steps, which each inner step sees, and which the outer step."""

    prepared: Prepared
    batches: Sequence[Sequence[int]]
    outer: Sequence[int]
    seed: int

    @classmethod
    def joined(cls, episodes: Sequence[_Episode]) -> _Episode:
        """One episode whose steps see the examples of all."""
        starts = list(accumulate((len(e.prepared.examples) for e in episodes), initial=0))
        steps = zip(*(e.batches for e in episodes), strict=True)
        return cls(
            Prepared(
                [example for e in episodes for example in e.prepared.examples],
                [hidden for e in episodes for hidden in e.prepared.hidden],
                [reference for e in episodes for reference in e.prepared.references],
            ),
            [
                [start + i for start, batch in zip(starts, step, strict=False) for i in batch]
                for step in steps
            ],
            [],
            episodes[0].seed,
        )


@dataclass(frozen=True)
class _Run:
    """A run's visits; the `state` moves on with each."""

    model: FewShotModel
    tasks: dict[str, Task]
    settings: MetaSettings
    state: MetaState
    tokens_per_pass: int

    @cached_property
    def order(self) -> list[str]:
        """The tasks in the order of their turns, `tasks_per_visit` a visit."""
        settings = self.settings
        return task_order(list(self.tasks), settings.visits * settings.tasks_per_visit, settings.seed)

    def visit(self) -> dict[str, Any]:
        """Fit the tasks whose turn it is, and move theta."""
        settings, state, backbone = self.settings, self.state, self.model.backbone
        started, first = time.perf_counter(), state.visit * settings.tasks_per_visit
        state.visit += 1
        turns = range(first, first + settings.tasks_per_visit)
        episodes = [self._episode(turn) for turn in turns]
        prior = GlobalPosterior(self.model.prior.config, self.model.prior.sites, state.theta)
        structured = settings.outer == "structured"
        moments = state.inner if settings.carry_moments or structured else None
        runs = [
            AdaptRun.start(backbone, prior, e.prepared, settings.inner, e.batches, e.seed, moments)
            for e in ([_Episode.joined(episodes)] if structured else episodes)
        ]
        while not runs[0].done:
            adapt_step(backbone, runs, self.tokens_per_pass)
        done = (state.visit - 1) / max(1, settings.visits - 1)
        rate = settings.outer_rate + done * (settings.final_outer_rate - settings.outer_rate)
        measured = self._move(episodes, [run.values for run in runs], rate)
        _average(settings, state)
        return {
            "visit": state.visit,
            "tasks": [self.order[turn] for turn in turns],
            "losses": [
                round(sum(losses) / len(runs), 4)
                for losses in zip(*(run.losses for run in runs), strict=True)
            ],
            **measured,
            "rate": round(rate, 5),
            "seconds": round(time.perf_counter() - started, 2),
        }

    def _episode(self, turn: int) -> _Episode:
        settings, inner = self.settings, self.settings.inner
        seed = derive_seed(settings.seed, "visit", turn + 1)
        support = inner.steps * inner.batch_size
        encoder = choose_encoder(self.model.encoder, settings.templates, derive_seed(seed, "template"))
        pool: list[LabelledPrompt] = fitting_examples(
            encoder,
            self.tasks[self.order[turn]],
            support + inner.batch_size * settings.query,
            settings.max_row_tokens,
            derive_seed(settings.seed, "pool", turn + 1),
            shuffle=settings.shuffle_options,
            likelihood=settings.likelihood,
            balanced=random.Random(derive_seed(seed, "balance")).random() >= settings.uniform,  # noqa: S311 - reproducible
        )
        # A task with too few examples for both keeps a batch for the query and goes over the rest more often.
        held_out = min(inner.batch_size, len(pool) // 2) if settings.query else 0
        batches = batch_order(len(pool) - held_out, inner.batch_size, inner.steps, seed)
        outer = list(range(len(pool) - held_out, len(pool))) or batches[-1]
        return _Episode(prepare(self.model.backbone, pool), batches, outer, seed)

    def _move(self, episodes: Sequence[_Episode], phis: Sequence[Tensor], rate: float) -> dict[str, float]:
        """The outer rule's step towards what the tasks ask for; its measurements."""
        settings, state, device = self.settings, self.state, self.model.backbone.device
        if settings.outer in GRADIENT_RULES:
            found = [
                _outer_gradient(
                    self.model, Batch.of([(0, e.prepared, i) for i in e.outer], device), phi, len(self.tasks),
                    settings, state,
                )
                for e, phi in zip(episodes, phis, strict=True)
            ]  # fmt: skip
            state.theta = state.outer.update(state.theta, _mean([gradient for gradient, _ in found]), rate)
            return {name: sum(terms[name] for _, terms in found) / len(found) for name in found[0][1]}
        move = _mean(phis) - state.theta
        state.theta = _mean(phis) if settings.outer == "structured" else state.theta + rate * move
        return {"moved": float(move.norm())}


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0)


def _average(settings: MetaSettings, state: MetaState) -> None:
    """Take this visit's theta into the average that ships."""
    if settings.ema is not None:
        first = state.averaged == 0
        state.average = state.theta.clone() if first else state.average.lerp(state.theta, 1 - settings.ema)
        state.averaged = 1
    elif state.visit > settings.average_from * settings.visits:
        state.average += state.theta
        state.averaged += 1


def _outer_gradient(
    model: FewShotModel,
    batch: Batch,
    phi: Tensor,
    tasks: int,
    settings: MetaSettings,
    state: MetaState,
) -> tuple[Tensor, dict[str, float]]:
    """The gradient [P] that theta's AdamW follows on `batch`, with fresh noise, and the terms it is of.

    `adamw`: of beta KL(phi || theta) - (beta / M) log p(theta). `fomaml`, and `adamw` with `query`: plus that of the
    batch's NLL in phi, which to first order is its gradient in theta.
    """
    config, sites = model.prior.config, model.prior.sites
    theta, moved = (values.detach().clone()[None].requires_grad_() for values in (state.theta, phi))
    with_kl, with_nll = settings.outer == "adamw", settings.query or settings.outer == "fomaml"
    loss = step_loss(
        model.backbone,
        config,
        batch,
        unflatten(moved, sites, config.layout.rank),
        seeds=[derive_seed(settings.seed, "outer", state.visit, i) for i in range(len(batch.labels))],
        prior=unflatten(theta, sites, config.layout.rank) if with_kl else None,
        kl_seeds=[derive_seed(settings.seed, "outer", state.visit)],
    )
    gradient, measured = torch.zeros_like(theta), {}
    if with_kl:
        objective = settings.prior_beta * (loss.kl.sum() - loss.log_prior.sum() / tasks)
        gradient += torch.autograd.grad(objective, theta, retain_graph=with_nll)[0]
        measured["kl"] = float(loss.kl.detach().sum())
    if with_nll:
        gradient += torch.autograd.grad(loss.nll.sum(), moved)[0]
        measured["query_nll"] = float(loss.nll.detach().mean())
    return gradient[0], measured


def _same_settings(path: Path, settings: MetaSettings, names: Sequence[str]) -> None:
    """Record what the run is, and refuse to resume a different one. A run from before a setting existed had its default."""
    record = json.loads(json.dumps({"settings": asdict(settings), "tasks": list(names)}))
    if path.exists():
        found = json.loads(path.read_text())
        defaults = json.loads(json.dumps(asdict(MetaSettings())))
        if {**found, "settings": {**defaults, **found["settings"]}} != record:
            raise AbmllError(
                f"{path.parent.name} holds a run with other settings or tasks: choose another folder"
            )
    path.write_text(json.dumps(record, indent=1))
