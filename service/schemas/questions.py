"""Typed questions and labelled cases as JSON, as OpenAI's Decisions have them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Tag, WithJsonSchema, field_validator

from service.schemas.structure import check_structure
from service.schemas.wire import WireModel, one_of, text_or_list

MAX_CHOICES = 255
_Ignored = Annotated[Any, Field(description="Ignored.")]


def tag_of_type(value: Any, kinds: Collection[str], default: str | None = None) -> str | None:
    """Return the tag of an object by its type, which has to be one of `kinds`; else None."""
    kind = value.get("type", default) if isinstance(value, dict) else None
    return f"<{kind}>" if isinstance(kind, str) and kind in kinds else None


# ---- instructions --------------------------------------------------------------------------------


class InputText(WireModel):
    """A text."""

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: _Ignored = None


def _structure(value: Any) -> Any:
    check_structure(value)
    return value


class InputJson(WireModel):
    """A JSON object, or a list of objects, which is read as lines of text."""

    type: Literal["input_json"]
    data: Annotated[dict[str, Any] | list[dict[str, Any]], AfterValidator(_structure)]


def _kind_of_instruction(value: Any) -> str | None:
    return tag_of_type(value, ("input_text", "input_json"))


_Instruction = Annotated[
    Annotated[InputText, Tag("<input_text>")] | Annotated[InputJson, Tag("<input_json>")],
    one_of(
        _kind_of_instruction,
        "a part of the type input_text or input_json: this server reads text, no images and no files",
    ),
]


def _says_something(instructions: Any) -> Any:
    parts = [instructions] if isinstance(instructions, str) else instructions
    if not any(part.strip() if isinstance(part, str) else _has_content(part) for part in parts):
        raise ValueError("the instructions are empty: say what is asked about the input")
    return instructions


def _has_content(part: InputText | InputJson) -> bool:
    return bool(part.text.strip()) if isinstance(part, InputText) else bool(part.data)


Instructions = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[_Instruction], Field(min_length=1), Tag("<list>")],
    text_or_list("parts"),
    AfterValidator(_says_something),
]


# ---- questions -----------------------------------------------------------------------------------


class _Question(WireModel):
    name: str | None = Field(
        default=None, description="For the caller: the answer has it, the model does not see it."
    )
    instructions: Instructions


class Predicate(_Question):
    """How likely is it that a statement about the input is true?"""

    type: Literal["predicate"]


class Criteria(WireModel):
    """What counts as yes, and what as no."""

    yes: str = ""
    no: str = ""


class DescribedPredicate(Predicate):
    """How likely is it that a statement about the input is true? With criteria, if there are any."""

    criteria: Criteria | None = None


def _kind_of_value(value: Any) -> str | None:
    return {str: "<text>", bool: "<boolean>"}.get(type(value))


class ChoiceOption(WireModel):
    """One of several values."""

    value: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[bool, Tag("<boolean>")],
        one_of(_kind_of_value, "a text or a boolean"),
    ] = Field(description="A text and a boolean of the same spelling are two values.")
    description: str | None = Field(default=None, description="When it applies.")


class Choice(_Question):
    """Which of several values fits the input?"""

    type: Literal["choice"]
    choices: list[ChoiceOption] = Field(min_length=2, max_length=MAX_CHOICES)

    @field_validator("choices")
    @classmethod
    def _different(cls, choices: list[ChoiceOption]) -> list[ChoiceOption]:
        seen = set()
        for choice in choices:
            key = (type(choice.value), choice.value)
            if key in seen:
                raise ValueError(f"two choices have the value {choice.value!r:.80}")
            seen.add(key)
        return choices


class Level(WireModel):
    """One of several levels."""

    label: str
    description: str | None = Field(default=None, description="What sets it apart from its neighbours.")


class Score(_Question):
    """Which of several levels, from the lowest to the highest, fits the input?"""

    type: Literal["score"]
    levels: list[Level] = Field(min_length=2, max_length=MAX_CHOICES)

    @field_validator("levels")
    @classmethod
    def _different(cls, levels: list[Level]) -> list[Level]:
        labels = [level.label for level in levels]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"two levels have the label {label!r:.80}")
        return levels


def kind_of_question(value: Any) -> str | None:
    """Return the tag of a question by its type."""
    if isinstance(value, Predicate | Choice | Score):
        return f"<{value.type}>"
    return tag_of_type(value, ("predicate", "choice", "score"))


KINDS_OF_QUESTIONS = "a question of the type predicate, choice or score"
Question = Annotated[
    Annotated[DescribedPredicate, Tag("<predicate>")]
    | Annotated[Choice, Tag("<choice>")]
    | Annotated[Score, Tag("<score>")],
    one_of(kind_of_question, KINDS_OF_QUESTIONS),
]

# ---- cases ---------------------------------------------------------------------------------------


def _answer(value: Any) -> Any:
    if value is not None and not isinstance(value, str | bool | int):
        raise ValueError("an answer is a text, a boolean, the index of a level, or null")
    return value


CaseAnswer = Annotated[
    Any,
    AfterValidator(_answer),
    WithJsonSchema({"anyOf": [{"type": kind} for kind in ("string", "boolean", "integer", "null")]}),
]
"""What a wire calls an option, or null for an input that does not tell the answer."""
Answers = Annotated[
    dict[str, CaseAnswer],
    Field(
        min_length=1,
        description="By the name of the question: true or false of a predicate, a value of a choice, the "
        "index or the label of a level. null: the input does not tell the answer.",
    ),
]


class Case(WireModel):
    """An input with its right answers, given by a person."""

    input: str = Field(description="The text.")
    answers: Answers
