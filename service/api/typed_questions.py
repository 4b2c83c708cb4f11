"""Typed questions of a wire: what it calls their options, and what the model sees of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from abmll.errors import OptionsError
from abmll.text.questions import NO, YES, Case, Kind, Question, TypedQuestion, Value
from abmll.text.tasks import CANNOT_TELL
from service import schemas
from service.api.structured_text import text_of
from service.errors import InvalidOptionsError, InvalidRequestError, InvalidSupportError

Location: TypeAlias = tuple[str | int, ...]
"""The path of a field, part by part: `("questions", 3, "options")`."""


def typed_question(
    question: schemas.Predicate | schemas.Choice | schemas.Score,
) -> TypedQuestion:
    """Return the question; one without a name has an empty one."""
    name, instruction = question.name or "", instruction_text(question.instructions)
    if isinstance(question, schemas.Predicate):
        criteria = question.criteria if isinstance(question, schemas.DescribedPredicate) else None
        return predicate(name, instruction, *((criteria.yes, criteria.no) if criteria else ()))
    if isinstance(question, schemas.Choice):
        values = [option.value for option in question.choices]
        return choice(name, instruction, values, _descriptions(question.choices))
    labels = [level.label for level in question.levels]
    return score(name, instruction, labels, _descriptions(question.levels))


def _descriptions(options: Sequence[schemas.ChoiceOption | schemas.Level]) -> list[str]:
    return [option.description or "" for option in options]


def instruction_text(given: str | Sequence[schemas.InputText | schemas.InputJson]) -> str:
    """Return a text, or the texts of parts joined by line breaks."""
    return given if isinstance(given, str) else "\n".join(map(part_text, given))


def part_text(part: schemas.InputText | schemas.InputJson) -> str:
    """Return the text of a part."""
    return text_of(part.data) if isinstance(part, schemas.InputJson) else part.text


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


def by_name(questions: Sequence[TypedQuestion]) -> dict[str, TypedQuestion]:
    """Return the questions by their names.

    Raises `InvalidRequestError`, placed at the question, for one without a name, or with the name
    of another.
    """
    found: dict[str, TypedQuestion] = {}
    for number, typed in enumerate(questions):
        name, place = typed.question.name, ("questions", number, "name")
        if not name:
            message = "every question needs a name: cases and answers say by it which question they mean"
            raise InvalidRequestError(message).placed(place)
        if name in found:
            message = f"two questions have the name {name!r:.80}: nothing could tell them apart"
            raise InvalidRequestError(message).placed(place)
        found[name] = typed
    return found


def cases_of(
    questions: Sequence[TypedQuestion], rows: Sequence[LabelledInput], below: Location = ()
) -> tuple[Case, ...]:
    """Return `rows` as cases of the questions; the field `cases` lies `below` this place.

    Raises as `by_name`, also for a question that only its name tells from another, and, placed at
    the answer, `InvalidSupportError` for an unknown question and `InvalidOptionsError` for an
    answer that is no option.
    """
    named = by_name(questions)
    keys: dict[object, str] = {}
    for number, (name, typed) in enumerate(named.items()):
        same = keys.setdefault(typed.question.key, name)
        if same != name:
            message = (
                f"it has the instructions and options of {same!r:.80}: an adapter could not tell them apart"
            )
            raise InvalidRequestError(message).placed(("questions", number))
    return tuple(_case((*below, "cases", number, "answers"), row, named) for number, row in enumerate(rows))


def _case(place: Location, row: LabelledInput, named: Mapping[str, TypedQuestion]) -> Case:
    answers: dict[str, str | None] = {}
    for name, answer in row.answers.items():
        if name not in named:
            raise InvalidSupportError(f"there is no question {name!r:.80}").placed((*place, name))
        try:
            answers[name] = None if answer is None else named[name].option_of(answer)
        except OptionsError as error:
            raise InvalidOptionsError(str(error)).placed((*place, name)) from error
    return Case(row.input, answers)
