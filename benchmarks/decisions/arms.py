"""What is compared: each arm answers the questions of test inputs, given labelled cases."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from abmll.model import FewShotModel
from abmll.posterior.config import TemperatureRule
from abmll.posterior.posteriors import GlobalPosterior, TaskPosterior
from abmll.text.demonstrations import fitting
from abmll.text.questions import Case, Question, examples_of
from abmll.text.tasks import Example, Query
from lab.evaluation.methods.embeddings import fit_and_predict

# Tokens of a prompt with demonstrations.
DEMONSTRATED_TOKENS = 2048
# Samples of an answer.
SAMPLES = 8


@dataclass(frozen=True)
class Answer:
    """Probabilities of a question's options, and what speaks for or against any answer.

    `answerable`, `typicality` and `information` (nats) are None where an arm does not know them.
    """

    probabilities: tuple[float, ...]
    answerable: float | None = None
    typicality: float | None = None
    information: float | None = None


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, and seconds of the processor, which other programs do not lengthen."""

    seconds: float = 0.0
    processor: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.processor + other.processor)


class Watch:
    """Measures what this process does from one lap to the next."""

    def __init__(self) -> None:
        self._last = time.perf_counter(), time.process_time()

    def lap(self) -> Cost:
        """Return the cost since the last lap, or since the start."""
        now = time.perf_counter(), time.process_time()
        found = Cost(now[0] - self._last[0], now[1] - self._last[1])
        self._last = now
        return found


@dataclass(frozen=True)
class Answers:
    """Answers by input and question, and what learning and answering cost."""

    rows: list[list[Answer]]
    learn: Cost
    answer: Cost


@dataclass(frozen=True)
class Trial:
    """What an arm is given: labelled cases of some questions, and the inputs to answer them about."""

    questions: Sequence[Question]
    cases: Sequence[Case]
    inputs: Sequence[str]
    seed: int


Arm = Callable[[FewShotModel, Trial], Answers]


def _ask(
    model: FewShotModel,
    posterior: TaskPosterior | None,
    questions: Sequence[Question],
    trial: Trial,
) -> list[list[Answer]]:
    queries = [question.query(text) for text in trial.inputs for question in questions]
    found = model.predict(posterior, queries, samples=SAMPLES, seed=trial.seed, truncate=True)
    flat = [
        Answer(
            one.predictive.probabilities,
            one.answerable,
            one.typicality,
            one.predictive.uncertainty.mutual_information,
        )
        for one in found
    ]
    return [flat[start : start + len(questions)] for start in range(0, len(flat), len(questions))]


def zero_shot(model: FewShotModel, trial: Trial) -> Answers:
    """Answer by the global posterior, which sees no case."""
    watch = Watch()
    rows = _ask(model, None, trial.questions, trial)
    return Answers(rows, Cost(), watch.lap())


def one_adapter(model: FewShotModel, trial: Trial) -> Answers:
    """Answer by one adapter of all questions."""
    watch = Watch()
    posterior = model.adapt(
        examples_of(trial.questions, trial.cases), seed=trial.seed, truncate=True
    ).posterior
    learn = watch.lap()
    rows = _ask(model, posterior, trial.questions, trial)
    return Answers(rows, learn, watch.lap())


def adapter_each(model: FewShotModel, trial: Trial) -> Answers:
    """Answer each question by an adapter of its own; zero-shot where its cases have one answer."""
    columns, learn, answer = [], Cost(), Cost()
    for question in trial.questions:
        watch = Watch()
        own = of_question(question, trial.cases)
        posterior: TaskPosterior | None = None
        if len({example.output for example in own}) > 1:
            posterior = model.adapt(own, seed=trial.seed, truncate=True).posterior
        learn += watch.lap()
        columns.append([row[0] for row in _ask(model, posterior, [question], trial)])
        answer += watch.lap()
    return Answers(by_input(columns), learn, answer)


def embeddings(model: FewShotModel, trial: Trial) -> Answers:
    """Answer by logistic regression on sentence embeddings, one for each question.

    Each text is embedded once. All of the cost is that of learning.
    """
    assert model.sentences is not None
    watch = Watch()
    texts = [*(case.input for case in trial.cases), *trial.inputs]
    known = dict(zip(texts, model.sentences(texts).numpy(), strict=True))
    columns = []
    for question in trial.questions:
        support = of_question(question, trial.cases)
        classes, found = fit_and_predict(
            support, trial.inputs, lambda texts: np.stack([known[text] for text in texts]), 1.0
        )
        columns.append(from_classes(question, len(support), classes, found))
    return Answers(by_input(columns), watch.lap(), Cost())


def in_context(model: FewShotModel, trial: Trial) -> Answers:
    """Answer by the base with the cases of a question in its prompt, as many as fit."""
    watch, columns = Watch(), []
    template, base = model.encoder.template, _base(model)
    for question in trial.questions:
        support = of_question(question, trial.cases)
        queries: list[Query] = [
            fitting(support, question.query(text), model.encoder, template, DEMONSTRATED_TOKENS)
            for text in trial.inputs
        ]
        found = model.predict(base, queries, samples=0, truncate=True)
        columns.append([Answer(one.predictive.probabilities, one.answerable) for one in found])
    return Answers(by_input(columns), Cost(), watch.lap())


def _base(model: FewShotModel) -> TaskPosterior:
    """Return the posterior whose mean changes nothing: the base, without any temperature."""
    config = replace(model.prior.config, similarity=None, temperature=TemperatureRule())
    untrained = GlobalPosterior.untrained(config, model.prior.sites)
    return TaskPosterior(config, untrained.sites, untrained.values)


def of_question(question: Question, cases: Sequence[Case]) -> list[Example]:
    """Return the examples that the cases are of one question."""
    answered = [case for case in cases if question.name in case.answers]
    return [question.example(case.input, case.answers[question.name]) for case in answered]


def from_classes(
    question: Question, labelled: int, classes: Sequence[str], found: NDArray[np.float64]
) -> list[Answer]:
    """Return answers from the probabilities [inputs, classes] of the classes that a support has.

    A class without an example among `labelled` has the probability of add-one smoothing.
    """
    unseen = 1 / (labelled + len(question.scored))
    rows = np.full((len(found), len(question.scored)), unseen)
    share = 1 - unseen * (len(question.scored) - len(classes))
    rows[:, [question.scored.index(name) for name in classes]] = share * found
    given = rows[:, :-1] / rows[:, :-1].sum(1, keepdims=True)
    return [
        Answer(tuple(options.tolist()), 1 - float(row[-1])) for options, row in zip(given, rows, strict=True)
    ]


def by_input(columns: Sequence[Sequence[Answer]]) -> list[list[Answer]]:
    """Return the answers by input and question, from those by question and input."""
    return [list(row) for row in zip(*columns, strict=True)]
