"""From the native answer to chats and completions, whole or in chunks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service import schemas
from service.api.openai import wire
from service.api.openai.requests import Body
from service.api.server_sent_events import data_event
from service.engine.answers import Answered

if TYPE_CHECKING:
    from abmll.prediction.run import Prediction

_IMPOSSIBLE = -9999.0  # OpenAI's number for the log of a probability of zero


@dataclass(frozen=True)
class Choice:
    """The answer to one input, for a chat or a completion. `text` is what the client reads."""

    text: str
    finish_reason: wire.FinishReason
    prediction: schemas.Prediction


@dataclass(frozen=True)
class Answers:
    """The answers of one request, for a chat or a completion.

    `common` has the fields that the whole object and every chunk have.
    """

    common: dict[str, Any]
    choices: Sequence[Choice]
    usage: wire.Usage
    extras: wire.AnswerExtras


def answers_of(
    answered: Answered,
    answer: schemas.PredictResponse,
    native: schemas.PredictRequest,
    body: Body,
    created: int,
) -> Answers:
    """Collect the answers to `body`.

    `native` is the request that stands for `body`, and `answer` the native answer to it. `created`
    is the time in Unix seconds.
    """
    prefix = "chatcmpl" if isinstance(body, wire.ChatCompletionRequest) else "cmpl"
    examples = answered.adapter.manifest.support.examples
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
        for prediction, done in zip(answer.predictions, answered.predictions, strict=True)
    ]
    used = answer.usage
    return Answers(
        common={
            "id": f"{prefix}-{answer.request_id}",
            "created": created,
            "model": answer.model or body.model,
        },
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
            refines_to=answer.refines_to,
            timings=answer.timings,
        ),
    )


def _is_cut(prediction: Prediction, max_new_tokens: int) -> bool:
    """Whether every sample's text reached its limit. Only the sum over samples is known."""
    return prediction.completion_tokens >= max(1, prediction.predictive.samples) * max_new_tokens


# ---- chats ---------------------------------------------------------------------------------------


def chat_completion(answers: Answers, body: wire.ChatCompletionRequest) -> wire.ChatCompletion:
    """Make the answer as one object."""
    (choice,) = answers.choices
    return wire.ChatCompletion(
        **answers.common,
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
        usage=answers.usage,
        abmll=answers.extras,
    )


def chat_chunks(answers: Answers, body: wire.ChatCompletionRequest) -> Iterator[wire.ChatChunk]:
    """Make the answer as chunks.

    Their order: the role, the text, the finish reason with the prediction, the usage if requested.
    """
    (choice,) = answers.choices
    common = _common_of_chunks(answers, body, "chat.completion.chunk")

    def chunk(delta: wire.ChatDelta, logprobs: wire.ChatLogprobs | None = None) -> wire.ChatChunk:
        added = wire.ChatChunkChoice(index=0, delta=delta, logprobs=logprobs, finish_reason=None)
        return wire.ChatChunk(**common, choices=[added])

    yield chunk(wire.ChatDelta(role="assistant", content=""))
    yield chunk(wire.ChatDelta(content=choice.text), _chat_logprobs(choice.prediction, body))
    last = wire.ChatChunkChoice(
        index=0,
        delta=wire.ChatDelta(),
        logprobs=None,
        finish_reason=choice.finish_reason,
        abmll=choice.prediction,
    )
    yield wire.ChatChunk(**common, choices=[last], abmll=answers.extras)
    if _wants_usage(body):
        yield wire.ChatChunk(**{**common, "choices": [], "usage": answers.usage})


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


# ---- completions ---------------------------------------------------------------------------------


def completion(answers: Answers, body: wire.CompletionRequest) -> wire.Completion:
    """Make the answers as one object."""
    return wire.Completion(
        **answers.common,
        object="text_completion",
        choices=[
            wire.CompletionChoice(
                index=index,
                text=choice.text,
                logprobs=_completion_logprobs(choice.prediction, body),
                finish_reason=choice.finish_reason,
                abmll=choice.prediction,
            )
            for index, choice in enumerate(answers.choices)
        ],
        usage=answers.usage,
        abmll=answers.extras,
    )


def completion_chunks(answers: Answers, body: wire.CompletionRequest) -> Iterator[wire.Completion]:
    """Make the answers as chunks.

    Their order: for each answer its text, then its finish reason with the prediction; at the end
    the usage if requested.
    """
    common = _common_of_chunks(answers, body, "text_completion")
    for index, choice in enumerate(answers.choices):
        logprobs = _completion_logprobs(choice.prediction, body)
        text = wire.CompletionChoice(index=index, text=choice.text, logprobs=logprobs, finish_reason=None)
        yield wire.Completion(**common, choices=[text])
        last = wire.CompletionChoice(
            index=index, text="", logprobs=None, finish_reason=choice.finish_reason, abmll=choice.prediction
        )
        yield wire.Completion(**common, choices=[last], abmll=answers.extras)
    if _wants_usage(body):
        yield wire.Completion(**{**common, "choices": [], "usage": answers.usage})


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


# ---- both ----------------------------------------------------------------------------------------


def dump(answer: schemas.WireModel) -> str:
    """Return the JSON of the fields that are set."""
    return answer.model_dump_json(exclude_unset=True)


def events(chunks: Iterable[schemas.WireModel]) -> bytes:
    """Return server-sent events: one for each chunk, then `[DONE]`."""
    return b"".join(map(data_event, [*map(dump, chunks), "[DONE]"]))


def _wants_usage(body: Body) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)


def _common_of_chunks(answers: Answers, body: Body, object_: str) -> dict[str, Any]:
    """Return the fields of every chunk.

    With usage requested, every chunk but the last has the usage null.
    """
    return {**answers.common, "object": object_, **({"usage": None} if _wants_usage(body) else {})}


def _ranked(prediction: schemas.Prediction) -> list[tuple[str, float]]:
    """List options with the logs of their probabilities, the most probable first."""
    rows = sorted(prediction.distribution, key=lambda row: -row.probability)
    return [(row.option, math.log(row.probability) if row.probability > 0 else _IMPOSSIBLE) for row in rows]
