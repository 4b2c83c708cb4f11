"""From a chat or a completion request to the native one."""

from __future__ import annotations

import re
from typing import TypeAlias

from service import schemas
from service.api.openai import wire
from service.errors import InvalidRequestError

Body: TypeAlias = wire.ChatCompletionRequest | wire.CompletionRequest

_IN_EXTRAS = re.compile(r"(support|options|samples|adapt|gate)\b")
_INPUT = re.compile(r"inputs(\[\d+\])?(\.options)?")


def native_request(body: Body, base_id: str, max_new_tokens: int) -> schemas.PredictRequest:
    """Make the native request. `max_new_tokens` is the server's limit.

    Raises `InvalidRequestError` if `body` names the base model without `support`.
    """
    extras = body.abmll
    if extras.support is None and body.model == base_id:
        message = f"{base_id!r} is the base model: name an adapter, or send examples as abmll.support"
        raise InvalidRequestError(message, "model")
    usual = schemas.PredictRequest.model_fields["max_new_tokens"].default
    return schemas.PredictRequest(
        model=body.model,
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


def field_name(native: str, inputs: str = "") -> str:
    """Return the field of OpenAI's request from which the native field comes.

    `inputs` names an input: a template for `re.Match.expand`, whose group 1 is the input's index in
    brackets.
    """
    if native == "adapter_id":
        return "model"
    if _IN_EXTRAS.match(native):
        return f"abmll.{native}"
    if found := _INPUT.fullmatch(native):
        return "abmll.options" if found[2] else found.expand(inputs)
    return native
