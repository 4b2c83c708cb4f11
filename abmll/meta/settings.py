"""Settings of a meta-training run; the rules are those of `train.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from abmll.adaptation.settings import AdaptSettings
from abmll.errors import AbmllError
from abmll.meta.episodes import Likelihood
from abmll.meta.instructions import Showing
from abmll.posterior.posteriors import GlobalPosterior
from abmll.text.prompting import PromptTemplate

OuterRule = Literal["natural", "adamw", "reptile", "structured", "fomaml"]
POINT_RULES = ("reptile", "structured", "fomaml")
GRADIENT_RULES = ("adamw", "fomaml")


@dataclass(frozen=True)
class MetaSettings:
    """Settings of one meta-training run.

    `visits` is the number of visits, and `tasks_per_visit` the number of tasks that each fits side
    by side; more tasks cost a GPU little. `inner` are the settings of the fit of phi; each of its
    steps has new examples of the task. Examples of more than `max_row_tokens` are left out.
    `carry_moments` keeps the moments of the inner AdamW across tasks, as the released code does.

    `outer_rate` is the learning rate of AdamW, or the step e of the other rules. It changes
    linearly to `final_outer_rate` over the run. `prior_beta` is beta in the objective of `adamw`.
    The result is the mean of theta over the visits after the fraction `average_from` of them. With
    `ema`, it is an exponential average over all visits instead, and `ema` is its decay per visit.

    `query` draws one more batch of new examples for the outer step of `adamw` and `fomaml`, which
    otherwise use the last inner batch again. `adamw` then also follows the NLL of the query, to
    first order (as ABML does, Ravi and Beatson 2019). `uniform` is the probability that a visit
    draws a task's examples uniformly, not with classes as equal as possible. With the `likelihood`
    `options`, the NLL is that of the label among the options. With `tokens`, it is that of the
    label's tokens, as for free text. `shuffle_options` shows options in a new order in every
    example. `templates` are prompt templates that visits use at random, beside the model's own.
    `showing` says how often visits show instructions, and which.
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
    showing: Showing = field(default_factory=Showing)


def check_settings(settings: MetaSettings, prior: GlobalPosterior) -> None:
    """Raise `AbmllError` for settings that contradict each other or do not fit `prior`.

    A rule for points needs a theta without noise.
    """
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
