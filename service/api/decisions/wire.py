"""The wire of OpenAI's Decisions. Fields of this server alone are below `abmll`.

OpenAI's parameters without effect here are accepted and ignored. All others are refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    Tag,
)

from model_store.pretrained.catalogue import DEFAULT_BASE
from service import schemas
from service.schemas import WireModel

MAX_LEVELS = 10
_IGNORED = "Ignored."
_Ignored = Annotated[Any, Field(description=_IGNORED)]

# ---- the input -----------------------------------------------------------------------------------


class OutputText(WireModel):
    """A text of the assistant."""

    type: Literal["output_text"]
    text: str


class Refusal(WireModel):
    """Words with which the assistant declined."""

    type: Literal["refusal"]
    refusal: str


def _kind_of_part(value: Any) -> str | None:
    return schemas.tag_of_type(value, ("input_text", "input_json", "output_text", "refusal"))


_Part = Annotated[
    Annotated[schemas.InputText, Tag("<input_text>")]
    | Annotated[schemas.InputJson, Tag("<input_json>")]
    | Annotated[OutputText, Tag("<output_text>")]
    | Annotated[Refusal, Tag("<refusal>")],
    schemas.one_of(
        _kind_of_part,
        "a part of the type input_text, input_json, output_text or refusal: this server reads text, "
        "no images and no files",
    ),
]
_Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[_Part], Field(min_length=1), Tag("<list>")],
    schemas.text_or_list("parts"),
]


class Message(WireModel):
    """A message of a conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "developer", "system", "assistant"]
    content: _Content
    phase: str | None = Field(default=None, description=_IGNORED)


class _Call(WireModel):
    call_id: str
    id: str | None = Field(default=None, description=_IGNORED)
    status: str | None = Field(default=None, description=_IGNORED)


class FunctionCall(_Call):
    """A call of a function by the assistant."""

    type: Literal["function_call"]
    name: str
    arguments: str
    namespace: str | None = Field(default=None, description=_IGNORED)


class FunctionCallOutput(_Call):
    """What a function returned."""

    type: Literal["function_call_output"]
    output: _Content


class CustomToolCall(_Call):
    """A call of a tool with a text."""

    type: Literal["custom_tool_call"]
    name: str
    input: str
    namespace: str | None = Field(default=None, description=_IGNORED)


class CustomToolCallOutput(_Call):
    """What a tool returned."""

    type: Literal["custom_tool_call_output"]
    output: _Content


_CALLS = ("function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output")


def _kind_of_item(value: Any) -> str | None:
    return schemas.tag_of_type(value, ("message", *_CALLS), "message")


_Item = Annotated[
    Annotated[Message, Tag("<message>")]
    | Annotated[FunctionCall, Tag("<function_call>")]
    | Annotated[FunctionCallOutput, Tag("<function_call_output>")]
    | Annotated[CustomToolCall, Tag("<custom_tool_call>")]
    | Annotated[CustomToolCallOutput, Tag("<custom_tool_call_output>")],
    schemas.one_of(_kind_of_item, f"a message, or an item of the type {', '.join(_CALLS)}"),
]


def _calls_match(items: Any) -> Any:
    """Raise `ValueError` for an output before, or without, a call with its id."""
    called: set[tuple[str, str]] = set()
    for item in items if isinstance(items, list) else ():
        if isinstance(item, FunctionCall | CustomToolCall):
            called.add((item.type, item.call_id))
        if isinstance(item, FunctionCallOutput | CustomToolCallOutput):
            call = item.type.removesuffix("_output")
            if (call, item.call_id) not in called:
                raise ValueError(
                    f"an output has the call_id {item.call_id!r:.80}, and no {call} before it has"
                )
    return items


Input = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[_Item], Field(min_length=1), Tag("<list>")],
    schemas.text_or_list("messages, calls and outputs"),
    AfterValidator(_calls_match),
]

# ---- questions -----------------------------------------------------------------------------------


class Score(schemas.Score):
    """Which of several levels, from the lowest to the highest, fits the input?"""

    levels: list[schemas.Level] = Field(min_length=2, max_length=MAX_LEVELS)


Question = Annotated[
    Annotated[schemas.Predicate, Tag("<predicate>")]
    | Annotated[schemas.Choice, Tag("<choice>")]
    | Annotated[Score, Tag("<score>")],
    schemas.one_of(schemas.kind_of_question, schemas.KINDS_OF_QUESTIONS),
]

# ---- the request ---------------------------------------------------------------------------------


class Case(WireModel):
    """An input with its right answers, given by a person."""

    input: Input
    answers: schemas.Answers


class Extras(schemas.DecideOptions):
    """Parameters of this server beyond OpenAI's."""

    cases: list[Case] | None = Field(
        default=None, min_length=1, description="Cases to learn from; every question then needs a name."
    )
    refuse: bool = Field(
        default=False, description="Answer a question with a refusal where the gate abstains."
    )


_EXAMPLE: dict[str, Any] = {
    "model": DEFAULT_BASE,
    "input": "I was charged twice for my order. Please help today.",
    "questions": [
        {"type": "predicate", "name": "urgent", "instructions": "Does the customer ask for help at once?"},
        {
            "type": "choice",
            "name": "team",
            "instructions": "Which team answers it?",
            "choices": [
                {"value": "billing", "description": "Payments, invoices and refunds."},
                {"value": "delivery", "description": "Parcels that are late or lost."},
            ],
        },
        {
            "type": "score",
            "name": "anger",
            "instructions": "How angry is the customer?",
            "levels": [{"label": "calm"}, {"label": "annoyed"}, {"label": "furious"}],
        },
    ],
    "abmll": {"gate": {"min_confidence": 0.5}},
}


class DecisionRequest(WireModel):
    """Typed questions about one input."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    model: str = Field(description="Id of the base model or of an adapter, or a name of one.")
    input: Input = Field(description="A text; or messages, calls and outputs, which are read as one text.")
    questions: list[Question] = Field(min_length=1)
    prompt_cache_key: str | None = Field(default=None, description=_IGNORED)
    prompt_cache_options: _Ignored = None
    safety_identifier: str | None = Field(default=None, description=_IGNORED)
    abmll: Extras = Extras()


# ---- answers -------------------------------------------------------------------------------------


class _Answer(WireModel):
    name: str | None = Field(description="Name of the question, or null.")
    abmll: schemas.AnswerDetails


class PredicateAnswer(_Answer):
    """The probability that the statement is true."""

    type: Literal["predicate"] = "predicate"
    probability: float


class ChoiceAnswer(_Answer):
    """The most probable value."""

    type: Literal["choice"] = "choice"
    choice: str | bool
    confidence: float = Field(description="Probability that `choice` is right.")
    probabilities: list[schemas.ValueProbability] = Field(description="In the order of the choices.")


class LevelProbability(WireModel):
    """The probability of one level."""

    value: int = Field(description="Index of the level, from 0.")
    label: str
    probability: float


class ScoreAnswer(_Answer):
    """The expected level."""

    type: Literal["score"] = "score"
    score: float = Field(description="Mean of the levels' indices, each with its probability.")
    confidence: float = Field(description="Probability that the most probable level is right.")
    probabilities: list[LevelProbability]


class RefusalAnswer(_Answer):
    """No answer, because the gate abstains."""

    type: Literal["refusal"] = "refusal"


class InputTokensDetails(WireModel):
    """Tokens of a prompt cache, of which there is none."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(WireModel):
    """Tokens of reasoning, of which there is none."""

    reasoning_tokens: int = 0


class Usage(WireModel):
    """Tokens that were read; nothing is written."""

    input_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class Decision(WireModel):
    """Answers in the order of the questions."""

    model: str = Field(description="What answered: the base model, an adapter, or a version of a name.")
    answers: list[PredicateAnswer | ChoiceAnswer | ScoreAnswer | RefusalAnswer]
    usage: Usage
    abmll: schemas.DecisionDetails
