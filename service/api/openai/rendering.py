"""Between OpenAI's shapes and our own: requests inward, answers and errors outward."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from service import schemas
from service.api.openai import wire
from service.engine.answers import Answered as EngineAnswer
from service.errors import (
    InvalidRequestError,
    PromptTooLongForContextError,
    QueueFullError,
    ServiceError,
    UnknownAdapterError,
    UnknownModelError,
)

if TYPE_CHECKING:
    from abmll.prediction.run import Prediction
    from model_store.adapters.manifest import AdapterManifest
    from service.executors.contract import ServedModel

Body: TypeAlias = wire.ChatCompletionRequest | wire.CompletionRequest

_IMPOSSIBLE = -9999.0  # OpenAI's number for what has no chance
_CODES: dict[type[ServiceError], str] = {
    UnknownAdapterError: "model_not_found",
    UnknownModelError: "model_not_found",
    PromptTooLongForContextError: "context_length_exceeded",
    QueueFullError: "rate_limit_exceeded",
}
_IN_EXTRAS = re.compile(r"(support|options|samples|adapt|gate)\b")
_INPUT = re.compile(r"inputs(\[\d+\])?(\.options)?")


def native_request(body: Body, base_id: str, max_new_tokens: int) -> schemas.PredictRequest:
    """The request of our own surface that `body` stands for. `max_new_tokens` is the most that the server takes.

    Raises `InvalidRequestError` where the base model is named without `support`.
    """
    extras = body.abmll
    adapted = extras.support is None
    if adapted and body.model == base_id:
        message = f"{base_id!r} is the base model: name an adapter, or send examples as abmll.support"
        raise InvalidRequestError(message, "model")
    usual = schemas.PredictRequest.model_fields["max_new_tokens"].default
    return schemas.PredictRequest(
        model=None if adapted else body.model,
        adapter_id=body.model if adapted else None,
        support=extras.support,
        inputs=list(body.inputs),
        options=extras.options,
        samples=extras.samples,
        seed=extras.seed if extras.seed is not None else body.seed or 0,
        adapt=extras.adapt,
        gate=extras.gate,
        truncate=extras.truncate,
        max_new_tokens=min(body.token_limit or usual, max_new_tokens),
    )


@dataclass(frozen=True)
class Choice:
    """One answer, in neither shape: `text` is what the client is to read."""

    text: str
    finish_reason: wire.FinishReason
    prediction: schemas.Prediction


@dataclass(frozen=True)
class Answered:
    """All answers of a request. `head` has the fields that every object and chunk begins with."""

    head: dict[str, Any]
    choices: Sequence[Choice]
    usage: wire.Usage
    extras: wire.AnswerExtras


def answered_of(
    predicted: EngineAnswer,
    answer: schemas.PredictResponse,
    native: schemas.PredictRequest,
    body: Body,
    created: int,
) -> Answered:
    """The `answer` to `native`, as which `body` was predicted. `created` is now, in Unix seconds."""
    prefix = "chatcmpl" if isinstance(body, wire.ChatCompletionRequest) else "cmpl"
    examples = predicted.adapter.manifest.support.examples
    free_text = not native.options and not any(example.options for example in examples)
    withhold = body.abmll.on_abstain == "null"
    choices = [
        Choice(
            text="" if withhold and prediction.decision == "abstain" else prediction.answer,
            finish_reason="length"
            if free_text and _is_cut(done.prediction, native.max_new_tokens)
            else "stop",
            prediction=prediction,
        )
        for prediction, done in zip(answer.predictions, predicted.predictions, strict=True)
    ]
    used = answer.usage
    return Answered(
        head={"id": f"{prefix}-{answer.request_id}", "created": created, "model": body.model},
        choices=choices,
        usage=wire.Usage(
            prompt_tokens=used.prompt_tokens,
            completion_tokens=used.completion_tokens,
            total_tokens=used.prompt_tokens + used.completion_tokens,
        ),
        extras=wire.AnswerExtras(
            adapter_id=answer.adapter_id,
            seed=answer.seed,
            support_tokens=used.support_tokens,
            warnings=answer.warnings,
            cache=answer.cache,
            timings=answer.timings,
        ),
    )


def _is_cut(prediction: Prediction, max_new_tokens: int) -> bool:
    """Whether the text came to its limit under every sample; of single samples' texts nothing is told."""
    return prediction.completion_tokens >= max(1, prediction.predictive.samples) * max_new_tokens


# ---- chats ----------------------------------------------------------------------------------------------------------


def chat_completion(answered: Answered, body: wire.ChatCompletionRequest) -> wire.ChatCompletion:
    """The answer in one object."""
    (choice,) = answered.choices
    return wire.ChatCompletion(
        **answered.head,
        object="chat.completion",
        choices=[
            wire.ChatChoice(
                index=0,
                message=wire.ChatMessage(role="assistant", content=choice.text, refusal=None),
                logprobs=_chat_logprobs(choice.prediction, body),
                finish_reason=choice.finish_reason,
                abmll=choice.prediction,
            )
        ],
        usage=answered.usage,
        abmll=answered.extras,
    )


def chat_chunks(answered: Answered, body: wire.ChatCompletionRequest) -> Iterator[wire.ChatChunk]:
    """The answer in chunks: the role, the text, why it ends with all that is known of it, and the usage if asked for."""
    (choice,) = answered.choices
    head = _head_of_chunks(answered, body, "chat.completion.chunk")

    def chunk(delta: wire.ChatDelta, logprobs: wire.ChatLogprobs | None = None) -> wire.ChatChunk:
        added = wire.ChatChunkChoice(index=0, delta=delta, logprobs=logprobs, finish_reason=None)
        return wire.ChatChunk(**head, choices=[added])

    yield chunk(wire.ChatDelta(role="assistant", content=""))
    yield chunk(wire.ChatDelta(content=choice.text), _chat_logprobs(choice.prediction, body))
    last = wire.ChatChunkChoice(
        index=0,
        delta=wire.ChatDelta(),
        logprobs=None,
        finish_reason=choice.finish_reason,
        abmll=choice.prediction,
    )
    yield wire.ChatChunk(**head, choices=[last], abmll=answered.extras)
    if _wants_usage(body):
        yield wire.ChatChunk(**{**head, "choices": [], "usage": answered.usage})


def _chat_logprobs(
    prediction: schemas.Prediction, body: wire.ChatCompletionRequest
) -> wire.ChatLogprobs | None:
    if not body.logprobs:
        return None
    options = [
        wire.OptionLogprob(token=option, logprob=logprob, bytes=list(option.encode()))
        for option, logprob in _ranked(prediction)
    ]
    answer = wire.AnswerLogprob(**dict(options[0]), top_logprobs=options[: body.top_logprobs or 0])
    return wire.ChatLogprobs(content=[answer], refusal=None)


# ---- completions ----------------------------------------------------------------------------------------------------


def completion(answered: Answered, body: wire.CompletionRequest) -> wire.Completion:
    """The answers in one object."""
    return wire.Completion(
        **answered.head,
        object="text_completion",
        choices=[
            wire.CompletionChoice(
                index=index,
                text=choice.text,
                logprobs=_completion_logprobs(choice.prediction, body),
                finish_reason=choice.finish_reason,
                abmll=choice.prediction,
            )
            for index, choice in enumerate(answered.choices)
        ],
        usage=answered.usage,
        abmll=answered.extras,
    )


def completion_chunks(answered: Answered, body: wire.CompletionRequest) -> Iterator[wire.Completion]:
    """The answers in chunks: of each the text, then why it ends with all that is known of it; the usage if asked for."""
    head = _head_of_chunks(answered, body, "text_completion")
    for index, choice in enumerate(answered.choices):
        logprobs = _completion_logprobs(choice.prediction, body)
        text = wire.CompletionChoice(index=index, text=choice.text, logprobs=logprobs, finish_reason=None)
        yield wire.Completion(**head, choices=[text])
        last = wire.CompletionChoice(
            index=index, text="", logprobs=None, finish_reason=choice.finish_reason, abmll=choice.prediction
        )
        yield wire.Completion(**head, choices=[last], abmll=answered.extras)
    if _wants_usage(body):
        yield wire.Completion(**{**head, "choices": [], "usage": answered.usage})


def _completion_logprobs(
    prediction: schemas.Prediction, body: wire.CompletionRequest
) -> wire.CompletionLogprobs | None:
    if body.logprobs is None:
        return None
    ranked = _ranked(prediction)
    answer, logprob = ranked[0]
    return wire.CompletionLogprobs(
        tokens=[answer],
        token_logprobs=[logprob],
        top_logprobs=[dict(ranked[: max(1, body.logprobs)])],
        text_offset=[0],
    )


# ---- both -----------------------------------------------------------------------------------------------------------


def dump(answer: schemas.WireModel) -> str:
    """JSON of what is set."""
    return answer.model_dump_json(exclude_unset=True)


def events(chunks: Iterable[schemas.WireModel]) -> str:
    """Server-sent events, one a chunk, and the one that says it is all."""
    return "".join(f"data: {data}\n\n" for data in [*map(dump, chunks), "[DONE]"])


def _wants_usage(body: Body) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)


def _head_of_chunks(answered: Answered, body: Body, object_: str) -> dict[str, Any]:
    """What every chunk begins with; where usage is asked for, all but the last say that they have none."""
    return {**answered.head, "object": object_, **({"usage": None} if _wants_usage(body) else {})}


def _ranked(prediction: schemas.Prediction) -> list[tuple[str, float]]:
    """Options and the logs of their probabilities, the answer first."""
    rows = sorted(prediction.distribution, key=lambda row: -row.probability)
    return [(row.option, math.log(row.probability) if row.probability > 0 else _IMPOSSIBLE) for row in rows]


# ---- models ---------------------------------------------------------------------------------------------------------


def base_card(served: ServedModel, started: datetime) -> schemas.ModelCard:
    """The base model as a model."""
    return schemas.ModelCard(
        id=served.base.id,
        created=int(started.timestamp()),
        parent=None,
        base=schemas.BaseInfo(**served.base.to_json()),
        posterior=served.posterior_id,
        max_model_len=served.encoder.max_tokens,
    )


def adapter_card(manifest: AdapterManifest, served: ServedModel) -> schemas.ModelCard:
    """An adapter as a model."""
    return schemas.ModelCard(
        id=manifest.id,
        created=int(datetime.fromisoformat(manifest.created).timestamp()),
        parent=manifest.base.id,
        base=schemas.BaseInfo(**manifest.base.to_json()),
        posterior=manifest.posterior_id,
        max_model_len=served.encoder.max_tokens,
    )


# ---- errors ---------------------------------------------------------------------------------------------------------


def error_shape(error: ServiceError, request_id: str) -> dict[str, Any]:
    """OpenAI's error object; the request's id is in the header only."""
    if error.status == QueueFullError.status:
        kind = "rate_limit_error"
    else:
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
    code = _CODES.get(type(error), error.code)
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": code}}


def field_name(native: str, inputs: str = "") -> str:
    """What OpenAI's request calls a field of the native one; `inputs` is the template of the name of the n-th input."""
    if native == "adapter_id":
        return "model"
    if _IN_EXTRAS.match(native):
        return f"abmll.{native}"
    if found := _INPUT.fullmatch(native):
        return "abmll.options" if found[2] else found.expand(inputs)
    return native
