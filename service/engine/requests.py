"""Requests to the engine, one record each.

Surfaces and the command line build them. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum

from abmll.adaptation.settings import AdaptSettings, Effort, settings_of
from abmll.prediction.settings import PredictSettings, Thresholds
from abmll.text.questions import Question, TypedQuestion
from abmll.text.tasks import Example, Query
from service.gating.confidence import WantedConfidence
from service.gating.records import GateRequest


class CacheOutcome(StrEnum):
    """How a request came by its adapter.

    HIT: the adapter was there. MISS: this request made it. JOINED: another request was making it.
    """

    HIT = "hit"
    MISS = "miss"
    JOINED = "joined"


@dataclass(frozen=True)
class AdaptOverrides:
    """Fields of `abmll.adaptation.settings.AdaptSettings` that a request sets.

    None leaves the value of `effort`, by default `full`, which is the served model's.
    """

    effort: Effort | None = None
    steps: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    beta: float | None = None

    @property
    def full(self) -> bool:
        """Return whether the steps are those of the effort `full`."""
        return self.effort in (None, "full") and self.steps is None

    def apply(self, defaults: AdaptSettings) -> AdaptSettings:
        """Return the settings of the effort with the fields that are set here."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(settings_of(given.pop("effort", "full"), defaults), **given)


@dataclass(frozen=True)
class AdaptRequest:
    """Support to adapt to, and how.

    `model` None stands for the served one. With `calibration_folds`, the adapter has the
    temperature that its own held-out answers choose. With `refine`, the adapter of effort `instant`
    answers, while that of this request is made in the background; it answers once it is there.
    `questions` are those that the adapter has for its own; the support answers some of them.
    """

    support: tuple[Example, ...]
    overrides: AdaptOverrides = AdaptOverrides()
    seed: int = 0
    truncate: bool = False
    model: str | None = None
    calibration_folds: int | None = None
    questions: tuple[TypedQuestion, ...] = ()
    refine: bool = False


@dataclass(frozen=True)
class PredictRequest:
    """Queries to answer, the adapter to answer them with, and the gate that decides.

    `adapter` is the id of one, or a request to make one. None stands for what `model` names (see
    `Engine.resolve_model`), and without it for the global posterior. `model` is the base model
    where `adapter` is given. Queries without options have the options that all support examples
    share; if the support has no options, they are answered in free text. `confidence` None stands
    for a calibrated one where the adapter has its own temperature.
    """

    adapter: str | AdaptRequest | None
    queries: tuple[Query, ...]
    settings: PredictSettings = field(default_factory=PredictSettings)
    gate: GateRequest = field(default_factory=GateRequest)
    confidence: WantedConfidence = None
    truncate: bool = False
    model: str | None = None


@dataclass(frozen=True)
class DecideRequest:
    """Questions to answer about each input.

    `adapter` is the id of an adapter, or a request to make one. None stands for what `model` names.
    Where that is the base model, or None, the global posterior answers, which has seen no example
    (zero-shot). `gate`, `confidence` and `settings` are as in `PredictRequest`, and hold for every
    question. A question whose name is in `gates` has these thresholds in place of `gate`, which
    then needs no calibration.
    """

    questions: tuple[Question, ...]
    inputs: tuple[str, ...]
    adapter: str | AdaptRequest | None = None
    settings: PredictSettings = field(default_factory=PredictSettings)
    gate: GateRequest = field(default_factory=GateRequest)
    gates: Mapping[str, Thresholds] = field(default_factory=dict)
    confidence: WantedConfidence = None
    truncate: bool = False
    model: str | None = None


@dataclass(frozen=True)
class DiagnoseRequest:
    """Adapter to diagnose on its own support.

    `folds` None stands for the default of `abmll.assurance.folds.make_folds`.
    """

    adapter_id: str
    folds: int | None = None
    samples: int = 8
