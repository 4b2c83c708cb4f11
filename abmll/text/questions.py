"""Typed questions about an input, and labelled cases: inputs with answers to several questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, TypeAlias

from abmll.errors import OptionsError, SupportError
from abmll.text.tasks import CANNOT_TELL, Example, Query, check_options, examples_by_question

Kind = Literal["predicate", "choice", "score"]
"""A predicate is true or not of an input, a choice is one of some options, and a score is one of
some levels, which have an order."""
YES, NO = "yes", "no"
Value: TypeAlias = str | bool | int
"""What a caller calls an option: a text or a boolean of a choice, a boolean of a predicate, the
index of a level of a score."""


@dataclass(frozen=True)
class Question:
    """What is asked about an input.

    `name` is for the caller and never reaches the model. `options` are `YES` and `NO` of a
    predicate, and the levels of a score from the lowest on. `descriptions` say what each option
    means: none, or one for each, which may be empty. An answer to a `declinable` question comes
    with the probability that the input tells it.
    """

    name: str
    kind: Kind
    instruction: str
    options: tuple[str, ...]
    descriptions: tuple[str, ...] = ()
    declinable: bool = True

    @property
    def scored(self) -> tuple[str, ...]:
        """Return the options that the model scores: with `CANNOT_TELL`, if it is declinable."""
        return (*self.options, CANNOT_TELL) if self.declinable else self.options

    @property
    def key(self) -> tuple[str, frozenset[str]]:
        """Return what an adapter knows the question by: examples with equal keys are of one."""
        return self.instruction, frozenset(self.scored)

    def query(self, text: str) -> Query:
        """Return the question about the input `text`."""
        descriptions = (
            (*self.descriptions, "") if self.declinable and self.descriptions else self.descriptions
        )
        return Query(text, self.scored, self.instruction, descriptions, self.declinable)

    def example(self, text: str, answer: str | None) -> Example:
        """Return the labelled question about `text`; None is an answer that it does not tell.

        Raises `OptionsError` for an answer that is not among the options.
        """
        if answer is not None and answer not in self.options:
            raise OptionsError(f"the answer {answer!r} is not among the options")
        query = self.query(text)
        return Example(
            text,
            CANNOT_TELL if answer is None else answer,
            query.options,
            query.instruction,
            query.descriptions,
            query.declinable,
        )


@dataclass(frozen=True)
class TypedQuestion:
    """A question, and what its caller calls the options; `values` are in the order of the options."""

    question: Question
    values: tuple[Value, ...]

    def option_of(self, answer: Value) -> str:
        """Return the option that the caller calls `answer`; a score's may be named by its text too.

        Raises `OptionsError` where there is none.
        """
        options = self.question.options
        for value, option in zip(self.values, options, strict=True):
            if type(value) is type(answer) and value == answer:
                return option
        if self.question.kind == "score" and isinstance(answer, str) and answer in options:
            return answer
        known = ", ".join(map(repr, self.values[:10])) + (", ..." if len(self.values) > 10 else "")
        raise OptionsError(f"{answer!r:.80} is no answer to this question: it has {known}")

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self.question), "values": self.values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned, also where tuples have become lists."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        called = fields.pop("values")
        return cls(Question(**fields), called)


@dataclass(frozen=True)
class Case:
    """An input with answers by the names of questions; None says that it does not tell.

    A question that `answers` does not name is one that nobody answered.
    """

    input: str
    answers: Mapping[str, str | None]


def questions_of(support: Sequence[Example]) -> tuple[TypedQuestion, ...]:
    """Return the questions that examples with an instruction ask, in the order of their first ones.

    They have no names, and kinds only as far as options tell: a score looks like a choice.
    """
    found = []
    for positions in examples_by_question(support).values():
        first = support[positions[0]]
        if first.instruction:
            count = len(first.options) - first.declinable
            options, descriptions = first.options[:count], first.descriptions[:count]
            kind: Kind = "predicate" if set(options) == {YES, NO} else "choice"
            question = Question("", kind, first.instruction, options, descriptions, first.declinable)
            values = tuple(option == YES if kind == "predicate" else option for option in options)
            found.append(TypedQuestion(question, values))
    return tuple(found)


def questions_from_json(rows: Sequence[Mapping[str, Any]]) -> tuple[Question, ...]:
    """Read questions as `/v1/decisions` has them: `type`, `name`, `instructions`, and the options.

    The options are `choices` with a `value`, or `levels` with a `label`; both may have a
    `description`. A predicate may have `criteria`, the descriptions of `yes` and `no`.
    """
    found = []
    for row in rows:
        kind = row["type"]
        if kind == "predicate":
            options, criteria = (YES, NO), row.get("criteria", {})
            descriptions = tuple(criteria.get(option, "") for option in options)
        else:
            listed = row["choices"] if kind == "choice" else row["levels"]
            options = tuple(option["value" if kind == "choice" else "label"] for option in listed)
            descriptions = tuple(option.get("description", "") for option in listed)
        shown = descriptions if any(descriptions) else ()
        found.append(Question(row["name"], kind, row["instructions"], options, shown))
    return tuple(found)


def check_question(question: Question) -> None:
    """Raise `OptionsError` unless `question` says what is asked, and has two different options."""
    if not question.instruction.strip():
        raise OptionsError("the instruction is empty")
    if question.descriptions and len(question.descriptions) != len(question.options):
        raise OptionsError("the descriptions are not as many as the options")
    check_options(question.options)
    if question.declinable and CANNOT_TELL in question.options:
        raise OptionsError(f"the option {CANNOT_TELL!r} stands for no answer: write it otherwise")


def examples_of(questions: Sequence[Question], cases: Sequence[Case]) -> list[Example]:
    """Return an example for each answer, case by case, in the order of the questions.

    Raises `OptionsError` for an answer that is not among its question's options, and `SupportError`
    for one to an unknown question.
    """
    names = {question.name for question in questions}
    for case in cases:
        if unknown := [name for name in case.answers if name not in names]:
            raise SupportError(f"there is no question {unknown[0]!r}")
    return [
        question.example(case.input, case.answers[question.name])
        for case in cases
        for question in questions
        if question.name in case.answers
    ]
