"""An adapter as its own support shows it."""

from __future__ import annotations

from typing import Literal

from abmll_client.models.answer import Answer
from abmll_client.models.predictions import Cache, Timings


class AccuracyEstimate(Answer):
    """Answers to `n` labelled examples, counted, with the interval of the accuracy."""

    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    nll: float  # mean negative log-likelihood of the labels, in nats
    nll_standard_error: float


class AdapterComparison(Answer):
    """The adapter against something else, on the same held-out examples."""

    helped: Literal["yes", "no", "unclear"]  # the gain's interval: above 0, below, on both sides
    log_likelihood_gain: float  # mean over examples, in nats
    standard_error: float
    gained: int  # examples that only the adapter answers right
    lost: int  # examples that only the other answers right
    p_value: float  # McNemar's exact test of the two, two-sided


class PosteriorMovement(Answer):
    """How far adaptation moved the posterior; KL is that of the task from the global posterior."""

    parameters: int  # adapted weights
    kl_nats: float | None = None
    kl_nats_per_parameter: float | None = None
    kl_nats_floored: float | None = None  # no standard deviation below an untrained posterior's
    relative_mean_change: float | None = None  # norm of the mean's change over the global mean's


class SuspectExample(Answer):
    """A support example whose held-out answer contradicts its label with this probability."""

    index: int
    label: str
    answer: str
    probability: float


class ConflictingExamples(Answer):
    """Support examples with one input and different labels."""

    indices: list[int]
    labels: list[str]


class GuessEstimate(Answer):
    """The accuracy and mean negative log-likelihood (nats) of answers that ignore the input."""

    accuracy: float
    nll: float


class VerdictReason(Answer):
    """Why a verdict was reached; `code` is the stable name of the rule."""

    code: str
    message: str


class AnswerableEstimate(Answer):
    """How well `answerable` knows the inputs that do not tell an answer."""

    n: int  # held-out examples
    untellable: int  # of these, those whose label is null
    auroc: float  # 0.5 is chance
    brier: float  # mean squared error
    guess_brier: float  # the same for the share of inputs that tell the answer


class RankedScore(Answer):
    """Ranked probability score of a question with levels: 0 is best, and 1 worst."""

    score: float
    guess: float  # the same for the frequencies of the labels


class QuestionDiagnosis(Answer):
    """How one question of an adapter is answered; the fields are those of `Diagnosis`."""

    name: str | None = None
    instruction: str
    held_out: AccuracyEstimate | None = None  # like all estimates, if answers could be held out
    prior: AccuracyEstimate | None = None
    in_context: AccuracyEstimate | None = None
    over_prior: AdapterComparison | None = None
    over_in_context: AdapterComparison | None = None
    guess: GuessEstimate | None = None
    answerable: AnswerableEstimate | None = None  # if some labels are null and some are not
    levels: RankedScore | None = None  # of a score
    suspects: list[SuspectExample]
    conflicts: list[ConflictingExamples]
    unseen_options: list[str]
    verdict: Literal["healthy", "weak", "unfit"]
    reasons: list[VerdictReason]


class Diagnosis(Answer):
    """How adapters that are fitted to some folds of the support answer the other folds."""

    asked_folds: int | None = None  # None: the server chose
    folds: int
    samples: int
    held_out: AccuracyEstimate  # by adapters fitted to the other folds
    prior: AccuracyEstimate  # by the mean of the global posterior, without adaptation
    in_context: AccuracyEstimate  # likewise, with the other folds' examples in the prompt
    over_prior: AdapterComparison
    over_in_context: AdapterComparison
    movement: PosteriorMovement
    guess: GuessEstimate
    suspects: list[SuspectExample]
    conflicts: list[ConflictingExamples]
    unseen_options: list[str]  # options that no support example has as its label
    verdict: Literal["healthy", "weak", "unfit"]
    reasons: list[VerdictReason]
    level: float  # of every interval
    questions: list[QuestionDiagnosis] | None = None  # of an adapter of cases


class DiagnoseResponse(Diagnosis):
    """A diagnosis, and how this request came by it."""

    adapter_id: str
    cache: Cache
    timings: Timings
    request_id: str
