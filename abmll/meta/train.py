"""Meta-training of ABMLL (docs/method.md 4).

A visit fits phi to a task, starting from theta. Then an outer rule moves theta. theta is in the
objective only in KL(phi || theta) and in its prior, log p(theta). Two rules minimise these, where
M is the number of tasks:

- `adamw`: one AdamW step on beta KL - (beta / M) log p(theta), as published.
- `natural`: the natural-gradient step on the same KL. For N(mu_theta, sigma_theta^2) and a step of
  size e it is theta <- theta + e (phi - theta), in the LoRA factors. The gradient of the prior in
  mu is left out: relative to that of the KL, its size is sigma_theta^2 / M, which is below 1e-6.
  Unlike AdamW, this rule does not make a full-size step in every coordinate from a small, noisy
  gradient. It is Reptile with a posterior.

Three more are baselines without noise or KL (`POINT_RULES`), where theta is a point
(`GlobalPosterior.without_noise`):

- `reptile`: theta <- theta + e (phi - theta) (Nichol et al. 2018).
- `structured`: theta <- phi, so one optimiser goes from task to task ("Structured LoRA" of the
  ABMLL paper).
- `fomaml`: one AdamW step on theta along the gradient of the query's NLL at phi (first-order MAML,
  Finn et al. 2017).

A mixed visit (`Showing.mixed`) fits phi to examples of many tasks, each with its own question. So
theta moves towards what answers them all, without any case of a task.

A visit has one task or several (`tasks_per_visit`). Several start from the same theta and are
fitted in one batch, and theta moves by the mean of their moves or gradients.

All random numbers depend on the seed and the number of the visit. So a resumed run equals an
uninterrupted one.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from abmll.adaptation.loss import Batch, step_loss
from abmll.adaptation.run import TOKENS_PER_BACKWARD, AdaptRun, adapt_step, batch_order
from abmll.adaptation.support import Prepared, prepare
from abmll.decoder.layout import unflatten
from abmll.errors import AbmllError
from abmll.meta.episodes import choose_encoder, fitting_examples
from abmll.meta.instructions import TaskInstructions, draw_questions
from abmll.meta.settings import GRADIENT_RULES, MetaSettings, check_settings
from abmll.meta.state import MetaState
from abmll.model import FewShotModel
from abmll.posterior.noise.draws import mean_draw
from abmll.posterior.posteriors import GlobalPosterior
from abmll.seeds import derive_seed
from abmll.text.prompting import LabelledPrompt
from abmll.text.tasks import Task, shared_options


def task_order(names: Sequence[str], visits: int, seed: int) -> list[str]:
    """Return the task of each visit.

    All tasks follow each other in a random order, then again in another one.
    """
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
    instructions: Mapping[str, TaskInstructions] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run the visits, and yield the metrics of each.

    `instructions` are those of each task, where the settings show any.

    `folder` gets the metrics, in `metrics.jsonl`, the settings and the checkpoint. `trained_prior`
    reads the result from it. With `resume`, the run continues from the checkpoint if there is one.
    Raises `AbmllError` for settings that `check_settings` refuses, and where `folder` has a run
    with other settings or tasks.
    """
    check_settings(settings, model.prior)
    if settings.showing.instructed:
        _check_instructions(tasks, instructions or {})
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
    by_name = {task.name: task for task in tasks}
    # Only those of the run's own tasks: a question of a task to test on must not be seen either.
    asked = {name: task for name, task in (instructions or {}).items() if name in by_name}
    run = _Run(model, by_name, settings, state, tokens_per_pass, asked)
    with log.open("a") as file:
        while state.visit < settings.visits:
            metrics = run.visit()
            file.write(json.dumps(metrics) + "\n")
            file.flush()
            if state.visit % settings.checkpoint_every == 0 or state.visit == settings.visits:
                state.save(checkpoint)
            yield metrics


def trained_prior(model: FewShotModel, folder: Path) -> GlobalPosterior:
    """Return the result of the run in `folder` at its last checkpoint."""
    return GlobalPosterior(
        model.prior.config, model.prior.sites, MetaState.load(folder / "checkpoint.safetensors").result()
    )


@dataclass(frozen=True)
class _Episode:
    """Examples of one task in a visit, or of many in a `mixed` one.

    `prepared` are all of them. `batches` are the numbers of the rows in each inner step, `outer` of
    those in the outer step.
    """

    prepared: Prepared
    batches: Sequence[Sequence[int]]
    outer: Sequence[int]
    seed: int
    mixed: bool = False

    @classmethod
    def joined(cls, episodes: Sequence[_Episode]) -> _Episode:
        """Return one episode whose steps have the examples of all `episodes`."""
        starts = list(accumulate((len(e.prepared.rows) for e in episodes), initial=0))
        firsts = accumulate((len(e.prepared.examples) for e in episodes), initial=0)
        steps = zip(*(e.batches for e in episodes), strict=True)
        return cls(
            Prepared(
                [example for e in episodes for example in e.prepared.examples],
                [
                    [first + i for i in row]
                    for first, e in zip(firsts, episodes, strict=False)
                    for row in e.prepared.rows
                ],
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
    """Meta-training run, whose `state` changes with each visit."""

    model: FewShotModel
    tasks: dict[str, Task]
    settings: MetaSettings
    state: MetaState
    tokens_per_pass: int
    instructions: Mapping[str, TaskInstructions]

    @cached_property
    def order(self) -> list[str]:
        """Return the tasks in the order of their turns, `tasks_per_visit` for each visit."""
        settings = self.settings
        return task_order(list(self.tasks), settings.visits * settings.tasks_per_visit, settings.seed)

    def visit(self) -> dict[str, Any]:
        """Fit the tasks of the next visit, move theta, and return the metrics of the visit."""
        settings, state, backbone = self.settings, self.state, self.model.backbone
        started, first = time.perf_counter(), state.visit * settings.tasks_per_visit
        state.visit += 1
        turns = range(first, first + settings.tasks_per_visit)
        # Option references by theta are those of the theta that the visit starts from.
        theta = state.theta
        backbone.global_draw = lambda rows: mean_draw(self.model.prior, theta, rows)
        backbone.offsets.clear()
        done = (state.visit - 1) / max(1, settings.visits - 1)
        rate = settings.outer_rate + done * (settings.final_outer_rate - settings.outer_rate)
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
        by_step = zip(*(run.losses for run in runs), strict=True)
        losses = [round(sum(losses) / len(runs), 4) for losses in by_step]
        measured = {"losses": losses, **self._move(episodes, [run.values for run in runs], rate)}
        if any(episode.mixed for episode in episodes):
            measured["mixed"] = sum(episode.mixed for episode in episodes)
        _average(settings, state)
        return self._metrics(turns, measured, rate, started)

    def _metrics(
        self, turns: Sequence[int], measured: Mapping[str, Any], rate: float, started: float
    ) -> dict[str, Any]:
        return {
            "visit": self.state.visit,
            "tasks": [self.order[turn] for turn in turns],
            **measured,
            "rate": round(rate, 5),
            "seconds": round(time.perf_counter() - started, 2),
        }

    def _episode(self, turn: int) -> _Episode:
        settings, inner = self.settings, self.settings.inner
        seed = derive_seed(settings.seed, "visit", turn + 1)
        size = inner.steps * inner.batch_size + inner.batch_size * settings.query
        rng = random.Random(derive_seed(seed, "showing"))  # noqa: S311 - reproducible, not secret
        own, showing = self.order[turn], settings.showing
        # The loss of a written answer, a sum over its tokens, would outweigh those of options.
        closed = [name for name, task in self.tasks.items() if task.train[0].options]
        mixed = rng.random() < showing.mixed and own in closed
        others = [name for name in closed if name != own] if mixed else []
        names = [own, *rng.sample(others, min(showing.mixed_tasks - 1, len(others)))]
        instructed = mixed or rng.random() < showing.instructed
        pool = [
            example
            for name in names
            for example in self._pool(name, -(-size // len(names)), turn, rng, instructed=instructed)
        ]
        # A task with too few examples for both keeps at most a batch for the query, and the inner
        # steps repeat the rest.
        prepared = prepare(self.model.backbone, pool)
        rows = len(prepared.rows)
        held_out = min(inner.batch_size, rows // 2) if settings.query else 0
        batches = batch_order(rows - held_out, inner.batch_size, inner.steps, seed)
        outer = list(range(rows - held_out, rows)) or batches[-1]
        return _Episode(prepared, batches, outer, seed, mixed)

    def _pool(
        self, name: str, size: int, turn: int, rng: random.Random, *, instructed: bool
    ) -> list[LabelledPrompt]:
        """Return at most `size` examples of a task for the visit of this turn."""
        settings, seed = self.settings, derive_seed(self.settings.seed, "visit", turn + 1)
        own = name == self.order[turn]
        ask = None
        if instructed:
            most = settings.showing.questions if own else 1
            ask = draw_questions(name, self.instructions, self.options, settings.showing, rng, most=most)
        return fitting_examples(
            choose_encoder(self.model.encoder, settings.templates, derive_seed(seed, "template")),
            self.tasks[name],
            size,
            settings.max_row_tokens,
            derive_seed(settings.seed, "pool", turn + 1, *([] if own else [name])),
            shuffle=settings.shuffle_options,
            likelihood=settings.likelihood,
            balanced=random.Random(derive_seed(seed, "balance")).random() >= settings.uniform,  # noqa: S311 - reproducible
            ask=ask,
        )

    @cached_property
    def options(self) -> dict[str, tuple[str, ...]]:
        """Return the options of each task, in one order; empty where they differ."""
        return {name: shared_options(task.train) for name, task in self.tasks.items()}

    def _move(self, episodes: Sequence[_Episode], phis: Sequence[Tensor], rate: float) -> dict[str, float]:
        """Move theta by the outer rule, and return the rule's metrics."""
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


def _check_instructions(tasks: Sequence[Task], instructions: Mapping[str, TaskInstructions]) -> None:
    """Raise `AbmllError` unless every task has instructions."""
    if missing := [task.name for task in tasks if task.name not in instructions]:
        raise AbmllError(f"no instructions for the tasks {', '.join(missing)}")


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0)


def _average(settings: MetaSettings, state: MetaState) -> None:
    """Add the theta of this visit to the average."""
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
    """Return the gradient [P] for the outer AdamW on `batch`, and the terms of the objective.

    With `adamw`, the gradient is that of beta KL(phi || theta) - (beta / M) log p(theta) in theta,
    where M is `tasks`. With `fomaml`, and with `adamw` and `query`, the gradient of the batch's NLL
    in phi is added, which to first order is its gradient in theta. The noise is new.
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
    """Write the settings and the tasks of a run to `path`.

    Raises `AbmllError` where the file there is of another run. A setting that it does not have
    counts as the default.
    """
    record = json.loads(json.dumps({"settings": asdict(settings), "tasks": list(names)}))
    if path.exists():
        found = json.loads(path.read_text())
        defaults = json.loads(json.dumps(asdict(MetaSettings())))
        if {**found, "settings": {**defaults, **found["settings"]}} != record:
            raise AbmllError(
                f"{path.parent.name} holds a run with other settings or tasks: choose another folder"
            )
    path.write_text(json.dumps(record, indent=1))
