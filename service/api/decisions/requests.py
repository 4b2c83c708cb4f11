"""From a request for decisions to its questions, its input and its cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from service.api.decision_requests import DecisionBody
from service.api.decisions import wire
from service.api.structured_text import text_of
from service.api.typed_questions import (
    LabelledInput,
    TypedQuestion,
    choice,
    predicate,
    score,
)

_Part: TypeAlias = wire.InputText | wire.InputJson | wire.OutputText | wire.Refusal
_Item: TypeAlias = (
    wire.Message
    | wire.FunctionCall
    | wire.FunctionCallOutput
    | wire.CustomToolCall
    | wire.CustomToolCallOutput
)


def decision_body(body: wire.DecisionRequest) -> DecisionBody:
    """Return what `body` asks for."""
    cases = body.abmll.cases
    return DecisionBody(
        model=body.model,
        input=input_text(body.input),
        questions=list(map(typed_question, body.questions)),
        extras=body.abmll,
        labelled=None
        if cases is None
        else [LabelledInput(input_text(case.input), case.answers) for case in cases],
    )


def typed_question(question: wire.Predicate | wire.Choice | wire.Score) -> TypedQuestion:
    """Return the question; one without a name has an empty one."""
    name, instruction = question.name or "", content_text(question.instructions)
    if isinstance(question, wire.Predicate):
        return predicate(name, instruction)
    if isinstance(question, wire.Choice):
        values = [option.value for option in question.choices]
        return choice(name, instruction, values, _descriptions(question.choices))
    labels = [level.label for level in question.levels]
    return score(name, instruction, labels, _descriptions(question.levels))


def _descriptions(options: Sequence[wire.ChoiceOption | wire.Level]) -> list[str]:
    return [option.description or "" for option in options]


def input_text(given: str | Sequence[_Item]) -> str:
    """Return the input as one text.

    A single message of the user is its text. Other messages begin with their role, calls with the
    name of what is called, and their outputs with the same name.
    """
    if isinstance(given, str):
        return given
    if len(given) == 1 and isinstance(given[0], wire.Message) and given[0].role == "user":
        return content_text(given[0].content)
    names = {
        item.call_id: item.name for item in given if isinstance(item, wire.FunctionCall | wire.CustomToolCall)
    }
    return "\n".join(_item_text(item, names) for item in given)


def _item_text(item: _Item, names: dict[str, str]) -> str:
    if isinstance(item, wire.Message):
        return f"{item.role}: {content_text(item.content)}"
    if isinstance(item, wire.FunctionCall):
        return f"call of {item.name}: {item.arguments}"
    if isinstance(item, wire.CustomToolCall):
        return f"call of {item.name}: {item.input}"
    return f"output of {names[item.call_id]}: {content_text(item.output)}"


def content_text(content: str | Sequence[_Part]) -> str:
    """Return a text, or the texts of parts joined by line breaks."""
    return content if isinstance(content, str) else "\n".join(map(_part_text, content))


def _part_text(part: _Part) -> str:
    if isinstance(part, wire.InputJson):
        return text_of(part.data)
    return part.refusal if isinstance(part, wire.Refusal) else part.text
