"""The wire of the OpenAI-compatible surface.

OpenAI's parameters without effect here are accepted and ignored, some only with the value that
changes nothing. All others are refused by name. In answers, optional fields without a value are not
set, and only set fields are sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from model_store.pretrained.catalogue import DEFAULT_BASE
from service import schemas
from service.schemas import WireModel, demo

MAX_TOP_LOGPROBS = 20
MAX_COMPLETION_LOGPROBS = 5
_ONE_MESSAGE = (
    "send one message, of the role user: an adapter has learnt its task from examples, "
    "and has not seen instructions or earlier messages"
)


# ---- requests ------------------------------------------------------------------------------------


_EXAMPLE: dict[str, Any] = {
    "model": DEFAULT_BASE,
    "abmll": {key: demo.predict_body()[key] for key in ("support", "options", "gate")},
}
_CHAT_EXAMPLE = {**_EXAMPLE, "messages": [{"role": "user", "content": demo.INPUTS[0]}]}
_COMPLETION_EXAMPLE = {**_EXAMPLE, "prompt": demo.INPUTS}
_IGNORED = "Ignored."
_Ignored = Annotated[Any, Field(description=_IGNORED)]
_Choice = Annotated[
    Literal["none", "auto"] | None,
    Field(description="Without functions to call, both change nothing."),
]
_Functions = Annotated[list[Any] | None, Field(description="Only with the choice `none`, or empty.")]
_Zero = Annotated[float, Field(ge=0, le=0)]
_Tokens = Annotated[int, Field(ge=1)]


class Extras(WireModel):
    """Parameters of this server beyond OpenAI's, as in `POST /v1/predict`."""

    support: schemas.Support | None = None
    options: schemas.Options = None
    adapt: schemas.Adapt | None = Field(default=None, description="How to fit; only together with `support`.")
    samples: schemas.Samples = 16
    seed: schemas.Seed | None = Field(
        default=None, description="Replaces the parameter `seed` outside of `abmll`."
    )
    gate: schemas.Gate | None = Field(default=None, description="When to abstain; by default never.")
    on_abstain: Literal["answer", "null"] = Field(
        default="answer", description="Content when abstaining: the answer, or with `null` an empty text."
    )
    truncate: schemas.Truncate = False

    @model_validator(mode="after")
    def _adapt_needs_support(self) -> Self:
        if self.adapt is not None and self.support is None:
            raise ValueError("adapt applies to support: an adapter named by model is already fitted")
        return self


class StreamOptions(WireModel):
    """How to stream."""

    include_usage: bool | None = Field(
        default=None, description="Send the number of used tokens in a last chunk."
    )
    include_obfuscation: bool | None = Field(default=None, description=_IGNORED)


class _Request(WireModel):
    """Parameters that chats and completions have in common."""

    model: str = Field(
        description="Id of an adapter, or a name of one; or the base model, if `abmll` has `support`."
    )
    abmll: Extras = Extras()
    seed: schemas.Seed | None = None
    stream: bool | None = Field(default=None, description="Answer in server-sent events.")
    stream_options: StreamOptions | None = None
    max_tokens: _Tokens | None = Field(
        default=None, description="Most tokens of a free-text answer; the server's limit holds too."
    )
    n: Literal[1] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(default=None, description=_IGNORED)
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(default=None, description=_IGNORED)
    frequency_penalty: _Zero | None = None
    presence_penalty: _Zero | None = None
    user: str | None = Field(default=None, description=_IGNORED)
    stop: schemas.Unsupported = None
    logit_bias: schemas.Unsupported = None


class TextPart(WireModel):
    """A part of a message."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: _Ignored = None


Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[TextPart], Field(min_length=1), Tag("<list>")],
    schemas.text_or_list("text parts"),
]


class UserMessage(WireModel):
    """The text to answer."""

    role: Literal["user"]
    content: Content = Field(description="The text; parts are joined by line breaks.")
    name: str | None = Field(default=None, description=_IGNORED)


class ResponseFormat(WireModel):
    """Text, the only format."""

    type: Literal["text"]


class ChatCompletionRequest(_Request):
    """One text to answer, as a chat."""

    model_config = ConfigDict(json_schema_extra={"examples": [_CHAT_EXAMPLE]})

    messages: list[UserMessage] = Field(
        min_length=1, max_length=1, description="One message, of the role user."
    )
    max_completion_tokens: _Tokens | None = Field(default=None, description="Replaces `max_tokens`.")
    logprobs: bool | None = Field(default=None, description="Return the log of the answer's probability.")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        default=None,
        description="Return it for this many of the most probable options too; needs `logprobs`.",
    )
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    service_tier: str | None = Field(default=None, description=_IGNORED)
    store: Literal[False] | None = None
    verbosity: Literal["medium"] | None = None
    metadata: dict[str, str] | None = Field(default=None, description=_IGNORED)
    prompt_cache_key: str | None = Field(default=None, description=_IGNORED)
    safety_identifier: str | None = Field(default=None, description=_IGNORED)
    prompt_cache_options: _Ignored = None
    prompt_cache_retention: _Ignored = None
    prediction: _Ignored = None
    reasoning_effort: Literal["none"] | None = None
    parallel_tool_calls: bool | None = Field(default=None, description=_IGNORED)
    function_call: _Choice = None
    functions: _Functions = None
    tool_choice: _Choice = None
    tools: _Functions = None
    audio: schemas.Unsupported = None
    moderation: schemas.Unsupported = None
    web_search_options: schemas.Unsupported = None

    @field_validator("messages", mode="before")
    @classmethod
    def _one_user_message(cls, messages: Any) -> Any:
        first = messages[0] if isinstance(messages, list) and messages else None
        if isinstance(first, dict) and (len(messages) > 1 or first.get("role") != "user"):
            raise ValueError(_ONE_MESSAGE)
        return messages

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, top: int | None, info: ValidationInfo) -> int | None:
        if top and not info.data.get("logprobs"):
            raise ValueError("it needs logprobs to be true")
        return top

    @field_validator("functions", "tools")
    @classmethod
    def _no_calls(cls, functions: Any, info: ValidationInfo) -> Any:
        choice = "function_call" if info.field_name == "functions" else "tool_choice"
        if functions and info.data.get(choice) != "none":
            raise ValueError(f"this server calls no functions; leave it out, or send {choice}: 'none'")
        return functions

    @property
    def inputs(self) -> Sequence[str]:
        """Texts to answer."""
        content = self.messages[0].content
        return [content if isinstance(content, str) else "\n".join(part.text for part in content)]

    @property
    def token_limit(self) -> int | None:
        """Most tokens of a free-text answer, or None."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(_Request):
    """Texts to answer."""

    model_config = ConfigDict(json_schema_extra={"examples": [_COMPLETION_EXAMPLE]})

    prompt: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[str], Field(min_length=1), Tag("<list>")],
        schemas.text_or_list("texts"),
    ] = Field(description="A text, or several; token ids are refused.")
    logprobs: Annotated[int, Field(ge=0, le=MAX_COMPLETION_LOGPROBS)] | None = Field(
        default=None,
        description="Return the log of the answer's probability, and that of this many of the most "
        "probable options.",
    )
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: schemas.Unsupported = None

    @property
    def inputs(self) -> Sequence[str]:
        """Texts to answer."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def token_limit(self) -> int | None:
        """Most tokens of a free-text answer, or None."""
        return self.max_tokens


# ---- answers -------------------------------------------------------------------------------------

FinishReason = Literal["stop", "length"]


class Usage(WireModel):
    """Tokens, as counted by `POST /v1/predict`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerExtras(WireModel):
    """Fields of the answer beyond OpenAI's; see `POST /v1/predict`."""

    adapter_id: str
    seed: int
    support_tokens: int
    warnings: list[str]
    cache: schemas.Cache
    refines_to: schemas.RefinesTo = None
    timings: schemas.Timings


class OptionLogprob(WireModel):
    """One option as a token."""

    token: str
    logprob: float = Field(
        description="Log of its probability in the posterior predictive; -9999 for a probability of zero."
    )
    bytes: list[int] = Field(description="The text in UTF-8.")


class AnswerLogprob(OptionLogprob):
    """The answer as a token."""

    top_logprobs: list[OptionLogprob] = Field(description="The most probable options, in decreasing order.")


class ChatLogprobs(WireModel):
    """One token: the answer."""

    content: list[AnswerLogprob]
    refusal: None


class CompletionLogprobs(WireModel):
    """One token: the answer."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class ChatMessage(WireModel):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(WireModel):
    """The answer, with its prediction in the native form."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    abmll: schemas.Prediction


class ChatCompletion(WireModel):
    """An answered chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    abmll: AnswerExtras


class ChatDelta(WireModel):
    """Fields that a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(WireModel):
    """Fields that a chunk adds to the choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    abmll: schemas.Prediction | None = None


class ChatChunk(WireModel):
    """One event of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    abmll: AnswerExtras | None = None


class CompletionChoice(WireModel):
    """One answer; in a chunk, the fields that the chunk adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    abmll: schemas.Prediction | None = None


class Completion(WireModel):
    """Answered texts, or one event of their stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    abmll: AnswerExtras | None = None
