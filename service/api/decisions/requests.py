"""From a request for decisions to its questions, its input and its cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from service import schemas
from service.api.decision_requests import DecisionBody
from service.api.decisions import wire
from service.api.typed_questions import LabelledInput, part_text, typed_question

_Part: TypeAlias = schemas.InputText | schemas.InputJson | wire.OutputText | wire.Refusal
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
        inputs=(input_text(body.input),),
        questions=list(map(typed_question, body.questions)),
        extras=body.abmll,
        labelled=None
        if cases is None
        else [LabelledInput(input_text(case.input), case.answers) for case in cases],
    )


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
    if isinstance(part, wire.Refusal):
        return part.refusal
    return part.text if isinstance(part, wire.OutputText) else part_text(part)
