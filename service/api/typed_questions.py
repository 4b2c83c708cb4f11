"""Typed questions of a wire: what it calls their options, and what the model sees of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from abmll.text.questions import NO, YES, Case, Kind, Question
from abmll.text.tasks import CANNOT_TELL
from service.errors import InvalidOptionsError, InvalidRequestError, InvalidSupportError

Value: TypeAlias = str | bool | int
"""What a wire calls an option: a text or a boolean of a choice, a boolean of a predicate, the index
of a level of a score."""


@dataclass(frozen=True)
class TypedQuestion:
    """A question, and what the wire calls its options; `values` are in the order of the options."""

    question: Question
    values: tuple[Value, ...]

    def option_of(self, answer: Value) -> str:
        """Return the option that the wire calls `answer`; a score's may be named by its text too.

        Raises `InvalidOptionsError` where there is none.
        """
        options = self.question.options
        for value, option in zip(self.values, options, strict=True):
            if type(value) is type(answer) and value == answer:
                return option
        if self.question.kind == "score" and isinstance(answer, str) and answer in options:
            return answer
        known = ", ".join(map(repr, self.values[:10])) + (", ..." if len(self.values) > 10 else "")
        raise InvalidOptionsError(f"{answer!r:.80} is no answer to this question: it has {known}")


def predicate(name: str, instruction: str, yes: str = "", no: str = "") -> TypedQuestion:
    """Return a predicate; `yes` and `no` describe its options, and may be empty."""
    return TypedQuestion(_question(name, "predicate", instruction, (YES, NO), (yes, no)), (True, False))


def choice(
    name: str, instruction: str, values: Sequence[str | bool], descriptions: Sequence[str]
) -> TypedQuestion:
    """Return a choice; `descriptions` are as many as the values, and may be empty."""
    return TypedQuestion(
        _question(name, "choice", instruction, option_texts(values), descriptions), tuple(values)
    )


def score(name: str, instruction: str, levels: Sequence[str], descriptions: Sequence[str]) -> TypedQuestion:
    """Return a score of `levels` from the lowest on; there are as many descriptions or none."""
    return TypedQuestion(
        _question(name, "score", instruction, levels, descriptions), tuple(range(len(levels)))
    )


def option_texts(values: Sequence[str | bool]) -> tuple[str, ...]:
    """Return the options that the model sees, which are the texts, and `true` and `false` in JSON.

    Where a text of the same choice reads like a boolean, the boolean says that it is one.
    """
    texts = {" ".join(value.split()) for value in values if isinstance(value, str)}

    def shown(value: str | bool) -> str:
        if isinstance(value, str):
            return value
        name = "true" if value else "false"
        return f"{name} (boolean)" if name in texts else name

    return tuple(map(shown, values))


def _question(
    name: str, kind: Kind, instruction: str, options: Sequence[str], descriptions: Sequence[str]
) -> Question:
    """Return the question; it is declinable unless its own options say that nothing can be told."""
    described = tuple(descriptions) if any(text.strip() for text in descriptions) else ()
    declinable = all(" ".join(option.split()).casefold() != CANNOT_TELL for option in options)
    return Question(name, kind, instruction, tuple(options), described, declinable)


@dataclass(frozen=True)
class LabelledInput:
    """An input with answers by the names of questions, as the wire has them; null is None."""

    input: str
    answers: Mapping[str, Value | None]


def cases_of(questions: Sequence[TypedQuestion], rows: Sequence[LabelledInput]) -> tuple[Case, ...]:
    """Return `rows` as cases of the questions.

    Raises `InvalidRequestError` for questions without names or with equal ones, and, placed at the
    answer, `InvalidSupportError` for an unknown question and `InvalidOptionsError` for an answer
    that is no option.
    """
    by_name: dict[str, TypedQuestion] = {}
    for number, typed in enumerate(questions):
        name = typed.question.name
        if not name:
            message = "with cases every question needs a name: cases say by it what they answer"
            raise InvalidRequestError(message).placed(("questions", number, "name"))
        if name in by_name:
            message = f"two questions have the name {name!r:.80}: cases could not tell them apart"
            raise InvalidRequestError(message).placed(("questions", number, "name"))
        by_name[name] = typed
    return tuple(_case(number, row, by_name) for number, row in enumerate(rows))


def _case(number: int, row: LabelledInput, by_name: Mapping[str, TypedQuestion]) -> Case:
    answers: dict[str, str | None] = {}
    for name, answer in row.answers.items():
        place = ("abmll", "cases", number, "answers", name)
        if name not in by_name:
            raise InvalidSupportError(f"there is no question {name!r:.80}").placed(place)
        try:
            answers[name] = None if answer is None else by_name[name].option_of(answer)
        except InvalidOptionsError as error:
            raise error.placed(place) from error
    return Case(row.input, answers)
