"""Diagnosis of an adapter from held-out answers: suspects, conflicts, a verdict, by question.

Everything here is a pure function of labels and probabilities; no model is needed.
docs/confidence.md explains the parts of a diagnosis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abmll.assurance.estimates import (
    LEVEL,
    AnswerableEstimate,
    Comparison,
    Estimate,
    Guess,
    RankedScore,
    answers_of,
    best_guess,
)
from abmll.assurance.folds import HeldOutAnswer
from abmll.assurance.verdicts import ReasonCode, Verdict
from abmll.posterior.movement import Movement
from abmll.text.questions import Question
from abmll.text.tasks import Example, QuestionKey, examples_by_question, question_key, tells

# A held-out answer of at least this probability that is not the label makes the label suspect.
SURE = 0.8
# An interval wider than this says too little. Up to eight examples can have one.
WIDE = 0.6


@dataclass(frozen=True)
class Suspect:
    """Support example, by its position, whose held-out answer differs from its label.

    `probability` is that of the answer.
    """

    index: int
    label: str
    answer: str
    probability: float


@dataclass(frozen=True)
class Conflict:
    """Positions of support examples with the same input, and their different labels.

    Labels are in the order of the positions.
    """

    indices: tuple[int, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Reason:
    """Reason for a verdict: a stable code and a sentence."""

    code: ReasonCode
    message: str


@dataclass(frozen=True)
class Answers:
    """Answers to the same examples by three predictors; the fields are those of `Diagnosis`."""

    held_out: Sequence[HeldOutAnswer]
    prior: Sequence[HeldOutAnswer]
    in_context: Sequence[HeldOutAnswer]

    def of(self, positions: Sequence[int]) -> Answers:
        """Return the answers to the examples at these positions of the support."""
        chosen = set(positions)
        return Answers(
            *(
                [row for row in rows if row.index in chosen]
                for rows in (self.held_out, self.prior, self.in_context)
            )
        )


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on: answers to examples whose inputs tell the answer."""

    held_out: Estimate
    prior: Estimate
    in_context: Estimate
    over_prior: Comparison
    over_in_context: Comparison
    guess: Guess


@dataclass(frozen=True)
class QuestionDiagnosis:
    """What the support of an adapter says about one of its questions.

    `evidence` is None where no example whose input tells the answer was held out. `answerable` is
    None unless there are also such whose input does not, and `levels` unless the question is a
    score. The other fields are those of `Diagnosis`.
    """

    name: str
    instruction: str
    evidence: Evidence | None
    answerable: AnswerableEstimate | None
    levels: RankedScore | None
    suspects: tuple[Suspect, ...]
    conflicts: tuple[Conflict, ...]
    unseen_options: tuple[str, ...]
    verdict: Verdict
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Diagnosis:
    """What the support of an adapter says about it.

    `held_out`, `prior` and `in_context` are on the same examples. `prior` is the mean of the global
    posterior. `in_context` is the same with the examples of the other folds as demonstrations, as
    many as fit. `asked_folds` is what the caller asked for (None: the default), `folds` what there
    was. Where the support has instructions, `questions` has a diagnosis of each question, and the
    estimates are of all of them together.
    """

    asked_folds: int | None
    folds: int
    samples: int
    held_out: Estimate
    prior: Estimate
    in_context: Estimate
    over_prior: Comparison
    over_in_context: Comparison
    movement: Movement
    guess: Guess
    suspects: tuple[Suspect, ...]
    conflicts: tuple[Conflict, ...]
    unseen_options: tuple[str, ...]
    verdict: Verdict
    reasons: tuple[Reason, ...]
    level: float = LEVEL
    questions: tuple[QuestionDiagnosis, ...] = ()


def diagnose(
    support: Sequence[Example],
    held_out: Sequence[HeldOutAnswer],
    prior: Sequence[HeldOutAnswer],
    in_context: Sequence[HeldOutAnswer],
    movement: Movement,
    *,
    asked_folds: int | None,
    folds: int,
    samples: int,
    questions: Sequence[Question] = (),
) -> Diagnosis:
    """Diagnose an adapter from three sets of answers to the same examples of its `support`.

    At least one of the examples has an input that tells its answer. `questions` are those of the
    adapter, for their names and kinds.
    """
    answers = Answers(held_out, prior, in_context)
    known = {question_key(question.query("")): question for question in questions}
    by_question = tuple(
        _diagnose_question(support, positions, answers, folds, known.get(key))
        for key, positions in _instructed(support).items()
    )
    found = _evidence(support, answers, folds)
    assert found is not None  # admission sees to it
    verdict, reasons = _of_all(judge(found), by_question)
    return Diagnosis(
        asked_folds=asked_folds,
        folds=folds,
        samples=samples,
        held_out=found.held_out,
        prior=found.prior,
        in_context=found.in_context,
        over_prior=found.over_prior,
        over_in_context=found.over_in_context,
        movement=movement,
        guess=found.guess,
        suspects=suspects(support, held_out),
        conflicts=conflicts(support),
        unseen_options=unseen_options(support),
        verdict=verdict,
        reasons=reasons,
        questions=by_question,
    )


def _instructed(support: Sequence[Example]) -> dict[QuestionKey, list[int]]:
    """Return the positions of the examples of each question, where they have instructions."""
    return examples_by_question(support) if any(example.instruction for example in support) else {}


def _diagnose_question(
    support: Sequence[Example],
    positions: Sequence[int],
    answers: Answers,
    folds: int,
    question: Question | None,
) -> QuestionDiagnosis:
    own, given = [support[i] for i in positions], answers.of(positions)
    found = _evidence(support, given, folds)
    tellable = [row for row in given.held_out if row.tellable]
    verdict, reasons = judge(found) if found else ("weak", (_NOT_HELD_OUT,))
    is_score = question is not None and question.kind == "score"
    return QuestionDiagnosis(
        name=question.name if question else "",
        instruction=own[0].instruction,
        evidence=found,
        answerable=AnswerableEstimate.of(given.held_out),
        levels=RankedScore.of(tellable) if is_score and tellable else None,
        suspects=suspects(support, given.held_out),
        conflicts=tuple(
            Conflict(tuple(positions[i] for i in conflict.indices), conflict.labels)
            for conflict in conflicts(own)
        ),
        unseen_options=unseen_options(own),
        verdict=verdict,
        reasons=reasons,
    )


_NOT_HELD_OUT = Reason(
    "not_held_out", "no answer could be held out: without it, the cases would show fewer than two labels"
)


def _evidence(support: Sequence[Example], answers: Answers, folds: int) -> Evidence | None:
    """Return what answers to one or more questions say; None where no input tells its answer."""
    own, prior, in_context = (
        [row for row in rows if row.tellable]
        for rows in (answers.held_out, answers.prior, answers.in_context)
    )
    if not own:
        return None
    groups = examples_by_question(support)
    # Answers to several questions about one input are not independent.
    inputs = [support[row.index].input for row in own] if len(groups) > 1 else None
    asked = {question_key(support[row.index]) for row in own}
    guesses = []
    for key in asked:
        shown = [support[i] for i in groups[key] if tells(support[i])]
        count = sum(question_key(support[row.index]) == key for row in own)
        guesses.append((best_guess(shown), count / len(own)))
    guess = (
        guesses[0][0]
        if len(guesses) == 1
        else Guess(
            sum(one.accuracy * share for one, share in guesses),
            sum(one.nll * share for one, share in guesses),
        )
    )
    return Evidence(
        Estimate.of(own, folds, inputs),
        Estimate.of(prior, inputs=inputs),
        Estimate.of(in_context, folds, inputs),
        Comparison.of(own, prior, folds, inputs),
        Comparison.of(own, in_context, folds, inputs),
        guess,
    )


def _of_all(
    found: tuple[Verdict, tuple[Reason, ...]], questions: Sequence[QuestionDiagnosis]
) -> tuple[Verdict, tuple[Reason, ...]]:
    """Return the verdict on all questions together: at best `weak` where one of them is unfit."""
    verdict, reasons = found
    unfit = [question.name or question.instruction for question in questions if question.verdict == "unfit"]
    if not unfit or len(questions) < 2 or verdict == "unfit":
        return found
    named = ", ".join(map(repr, unfit))
    reason = Reason("question_unfit", f"{len(unfit)} of {len(questions)} questions are unfit: {named}")
    return "weak", (*(reasons if verdict == "weak" else ()), reason)


def judge(found: Evidence) -> tuple[Verdict, tuple[Reason, ...]]:
    """Return the verdict, with every rule that led to it.

    `unfit`: surely no better than guessing (the interval's upper end is not above it), or no better
    in both accuracy and NLL. `weak`: not shown to beat guessing, no gain in likelihood over the
    prior or over the examples in the prompt, or an interval wider than `WIDE`. `healthy` otherwise.
    """
    own, guess = found.held_out, found.guess
    guessing = f"guessing is right for {guess.accuracy:.0%}"
    shown = f"held-out accuracy {own.accuracy:.0%} [{own.low:.0%}, {own.high:.0%}]"
    if own.high <= guess.accuracy:
        return "unfit", (Reason("below_guessing", f"{shown}: surely no better than guessing; {guessing}"),)
    if own.accuracy <= guess.accuracy and own.nll >= guess.nll:
        message = (
            f"{shown} and NLL {own.nll:.2f}: neither beats guessing; {guessing}, with NLL {guess.nll:.2f}"
        )
        return "unfit", (Reason("no_better_than_guessing", message),)
    reasons = []
    if own.low <= guess.accuracy:
        reasons.append(Reason("not_shown_to_beat_guessing", f"{shown} may be guessing; {guessing}"))
    others: tuple[tuple[ReasonCode, str, Comparison], ...] = (
        ("no_gain_over_prior", "the prior without adaptation", found.over_prior),
        ("no_gain_over_in_context", "the examples in the prompt", found.over_in_context),
    )
    for code, name, comparison in others:
        if comparison.log_likelihood_gain <= 0:
            gain = f"{comparison.log_likelihood_gain:+.2f} ± {comparison.standard_error:.2f} nats an example"
            reasons.append(Reason(code, f"no better than {name}: {gain}"))
    if own.high - own.low > WIDE:
        reasons.append(Reason("too_few_examples", f"{shown} rests on {own.n} examples only"))
    if reasons:
        return "weak", tuple(reasons)
    return "healthy", (Reason("beats_guessing", f"{shown}; {guessing}"),)


def suspects(support: Sequence[Example], held_out: Sequence[HeldOutAnswer]) -> tuple[Suspect, ...]:
    """Return the examples whose held-out answer contradicts the label, the surest first.

    The answer's probability is at least `SURE`.
    """
    found = [
        Suspect(
            row.index,
            support[row.index].output,
            support[row.index].options[row.answer],
            max(row.probabilities),
        )
        for row in held_out
        if row.tellable and not row.correct and max(row.probabilities) >= SURE
    ]
    return tuple(sorted(found, key=lambda suspect: -suspect.probability))


def conflicts(support: Sequence[Example]) -> tuple[Conflict, ...]:
    """Return the groups of examples of one question and input whose labels are not equal.

    White space around inputs is ignored.
    """
    of_input: dict[tuple[QuestionKey, str], list[int]] = {}
    for i, example in enumerate(support):
        of_input.setdefault((question_key(example), example.input.strip()), []).append(i)
    groups = (
        Conflict(tuple(indices), tuple(support[i].output for i in indices)) for indices in of_input.values()
    )
    return tuple(group for group in groups if len(set(group.labels)) > 1)


def unseen_options(support: Sequence[Example]) -> tuple[str, ...]:
    """Return the options that all examples of one question share and none has as its label."""
    if len({(example.instruction, frozenset(example.options)) for example in support}) > 1:
        return ()
    shown = {example.output for example in support}
    return tuple(option for option in answers_of(support[0]) if option not in shown)
