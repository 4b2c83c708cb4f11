"""What is compared: each arm answers the questions of test inputs, given labelled cases."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from abmll.adaptation.settings import AdaptSettings
from abmll.model import FewShotModel
from abmll.posterior.posteriors import TaskPosterior
from abmll.text.demonstrations import fitting
from abmll.text.questions import Case, Question, examples_of
from abmll.text.tasks import Query
from lab.evaluation.methods.embeddings import fit_and_predict

# Tokens of a prompt with demonstrations.
DEMONSTRATED_TOKENS = 2048
# Samples of an answer.
SAMPLES = 16


@dataclass(frozen=True)
class Answer:
    """Probabilities of a question's options, and what speaks for or against any answer.

    `answerable` and `typicality` are None where an arm does not know them.
    """

    probabilities: tuple[float, ...]
    answerable: float | None = None
    typicality: float | None = None
    information: float | None = None


@dataclass(frozen=True)
class Answers:
    """Answers by input and question, and the seconds that learning and answering took."""

    rows: list[list[Answer]]
    learn_seconds: float
    answer_seconds: float


Arm = Callable[[FewShotModel, Sequence[Question], Sequence[Case], Sequence[str], int], Answers]


def _ask(
    model: FewShotModel,
    posterior: TaskPosterior | None,
    questions: Sequence[Question],
    inputs: Sequence[str],
    seed: int,
) -> list[list[Answer]]:
    queries = [question.query(text) for text in inputs for question in questions]
    found = model.predict(posterior, queries, samples=SAMPLES, seed=seed, truncate=True)
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


def zero_shot(
    model: FewShotModel,
    questions: Sequence[Question],
    cases: Sequence[Case],
    inputs: Sequence[str],
    seed: int,
) -> Answers:
    """Answer by the global posterior, which sees no case."""
    started = time.perf_counter()
    rows = _ask(model, None, questions, inputs, seed)
    return Answers(rows, 0.0, time.perf_counter() - started)


def one_adapter(settings: AdaptSettings | None = None) -> Arm:
    """Return the arm of one adapter for all questions."""

    def answer(
        model: FewShotModel,
        questions: Sequence[Question],
        cases: Sequence[Case],
        inputs: Sequence[str],
        seed: int,
    ) -> Answers:
        started = time.perf_counter()
        posterior = model.adapt(examples_of(questions, cases), settings, seed, truncate=True).posterior
        learned = time.perf_counter()
        rows = _ask(model, posterior, questions, inputs, seed)
        return Answers(rows, learned - started, time.perf_counter() - learned)

    return answer


def adapter_each(settings: AdaptSettings | None = None) -> Arm:
    """Return the arm of an adapter for each question alone."""

    def answer(
        model: FewShotModel,
        questions: Sequence[Question],
        cases: Sequence[Case],
        inputs: Sequence[str],
        seed: int,
    ) -> Answers:
        columns, learn, ask = [], 0.0, 0.0
        for question in questions:
            started = time.perf_counter()
            own = _of_question(question, cases)
            posterior: TaskPosterior | None = None
            if len({case.answers[question.name] for case in own}) > 1:
                posterior = model.adapt(examples_of([question], own), settings, seed, truncate=True).posterior
            learned = time.perf_counter()
            columns.append([row[0] for row in _ask(model, posterior, [question], inputs, seed)])
            learn, ask = learn + learned - started, ask + time.perf_counter() - learned
        return Answers([list(row) for row in zip(*columns, strict=True)], learn, ask)

    return answer


def embeddings(
    model: FewShotModel,
    questions: Sequence[Question],
    cases: Sequence[Case],
    inputs: Sequence[str],
    seed: int,
) -> Answers:
    """Answer by logistic regression on sentence embeddings, one for each question."""
    assert model.sentences is not None
    encode = model.sentences
    started, columns = time.perf_counter(), []
    for question in questions:
        support = examples_of([question], _of_question(question, cases))
        classes, found = fit_and_predict(support, inputs, lambda texts: encode(texts).numpy(), 1.0)
        unseen = 1 / (len(support) + len(question.scored))
        rows = np.full((len(inputs), len(question.scored)), unseen)
        share = 1 - unseen * (len(question.scored) - len(classes))
        rows[:, [question.scored.index(name) for name in classes]] = share * found
        columns.append([_of_scored(row) for row in rows])
    return Answers([list(row) for row in zip(*columns, strict=True)], 0.0, time.perf_counter() - started)


def _of_question(question: Question, cases: Sequence[Case]) -> list[Case]:
    """Return the cases with their answers to one question alone."""
    return [Case(case.input, {question.name: case.answers[question.name]}) for case in cases]


def _of_scored(row: np.ndarray) -> Answer:
    given = row[:-1] / row[:-1].sum()
    return Answer(tuple(given.tolist()), 1 - float(row[-1]))


def in_context(
    model: FewShotModel,
    questions: Sequence[Question],
    cases: Sequence[Case],
    inputs: Sequence[str],
    seed: int,
) -> Answers:
    """Answer by the base with the cases of a question in its prompt, as many as fit."""
    started, columns = time.perf_counter(), []
    template = model.encoder.template
    for question in questions:
        support = examples_of([question], _of_question(question, cases))
        queries: list[Query] = [
            fitting(support, question.query(text), model.encoder, template, DEMONSTRATED_TOKENS)
            for text in inputs
        ]
        found = model.predict(None, queries, samples=0, truncate=True)
        columns.append([Answer(one.predictive.probabilities, one.answerable) for one in found])
    return Answers([list(row) for row in zip(*columns, strict=True)], 0.0, time.perf_counter() - started)


def steps(count: int, batch: int, rate: float, model: FewShotModel) -> AdaptSettings:
    """Return the model's settings with other steps."""
    return replace(model.defaults, steps=count, batch_size=batch, learning_rate=rate)
