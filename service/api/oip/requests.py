"""From an inference request to the native one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from pydantic_core import from_json

from service import schemas
from service.api.native.predicting import native_request
from service.api.native.requests import adapt_request
from service.api.oip import wire
from service.api.oip.binary import decode_texts
from service.api.oip.models import ANY_LENGTH, OUTPUTS_OF_OPTIONS, Model, output_tensors
from service.engine.admission import OptionRule
from service.errors import InvalidRequestError


def predict_request(model: Model, body: wire.InferRequest, tensors: bytes) -> schemas.PredictRequest:
    """Make the native request. `tensors` are the bytes after the JSON object.

    Raises `InvalidRequestError`.
    """
    given = body.parameters
    fields: dict[str, Any] = {
        "inputs": texts_of(body.inputs, tensors),
        "options": _parse_json("options", given.options),
        "samples": given.samples,
        "seed": given.seed,
        "gate": _parameters_of(schemas.Gate, given),
        "truncate": given.truncate,
        "max_new_tokens": given.max_new_tokens,
    }
    adapt = _parameters_of(schemas.Adapt, given)
    if model.manifest is None:
        if given.support is None:
            raise InvalidRequestError(f"{model.name!r} is the base model, which needs examples", "support")
        support = _parse_json("support", given.support)
        return native_request({"model": model.name, "support": support, "adapt": adapt, **fields})
    if given.support is not None or adapt is not None:
        message = f"{model.name!r} is already fitted: support, and how to fit, are for the base model"
        raise InvalidRequestError(message, "support" if given.support is not None else None)
    return native_request({"adapter_id": model.manifest.id, **fields})


def _parameters_of(part: type[schemas.WireModel], given: wire.InferParameters) -> dict[str, Any] | None:
    """Return the parameters that are fields of `part`, or None if none of them is given."""
    return given.model_dump(include=set(part.model_fields), exclude_none=True) or None


def _parse_json(name: str, text: str | None) -> Any:
    try:
        return None if text is None else from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequestError(f"the text is not JSON: {error}", name) from error


def texts_of(inputs: Sequence[wire.InputTensor], tensors: bytes) -> list[str]:
    """Read the texts of the one input `text`, from its JSON or from `tensors`.

    Raises `InvalidRequestError`.
    """
    names = [tensor.name for tensor in inputs]
    if names != ["text"]:
        raise InvalidRequestError(f"one input is needed, 'text'; not {', '.join(names)[:80]!r}", "text")
    (tensor,) = inputs
    size = tensor.parameters.binary_data_size
    if tensor.datatype != "BYTES":
        raise InvalidRequestError(f"the datatype is BYTES, not {tensor.datatype[:80]!r}", "text.datatype")
    if (tensor.data is None) == (size is None):
        raise InvalidRequestError("either data or binary_data_size is needed", "text.data")
    if len(tensors) != (size or 0):
        message = f"{size or 0} bytes are declared, and {len(tensors)} follow the JSON object"
        raise InvalidRequestError(message, "text.parameters.binary_data_size")
    if tensor.data is None:
        texts = decode_texts(tensors, "text")
    else:
        texts = [t for element in tensor.data for t in ([element] if isinstance(element, str) else element)]
    shape = tensor.shape
    if not shape or shape[0] < 1 or shape[1:] not in ([], [1]):
        raise InvalidRequestError("the shape is [n] or [n, 1], with n from 1", "text.shape")
    if len(texts) != prod(shape):
        raise InvalidRequestError(f"the shape is {shape}, and there are {len(texts)} texts", "text.shape")
    return texts


def options_of(model: Model, native: schemas.PredictRequest) -> tuple[str, ...]:
    """Return the options that all texts of the request have; empty for free text."""
    return tuple(native.options or (model.options or OptionRule.of(adapt_request(native).support)).shared)


@dataclass(frozen=True)
class WantedOutput:
    """An output to return, and whether it is sent as binary data."""

    name: str
    binary: bool


def wanted_outputs(body: wire.InferRequest, options: Sequence[str]) -> list[WantedOutput]:
    """List the outputs to return: those named in the request, or all.

    Raises `InvalidRequestError` for an unknown one.
    """
    names = [
        name for name in output_tensors(ANY_LENGTH, ANY_LENGTH) if options or name not in OUTPUTS_OF_OPTIONS
    ]
    binary = body.parameters.binary_data_output
    if not body.outputs:
        return [WantedOutput(name, binary) for name in names]
    wanted = []
    for i, output in enumerate(body.outputs):
        if output.name not in names:
            message = f"there is no output {output.name[:80]!r} here; there are {', '.join(names)}"
            raise InvalidRequestError(message, f"outputs[{i}].name")
        own = output.parameters.binary_data
        wanted.append(WantedOutput(output.name, binary if own is None else own))
    if len({output.name for output in wanted}) < len(wanted):
        raise InvalidRequestError("an output is named twice", "outputs")
    return wanted


def field_name(param: str) -> str:
    """Return the field of an inference request from which the native field `param` comes."""
    first, _, rest = param.partition(".")
    if first.startswith("inputs"):
        return f"text{first.removeprefix('inputs')}"
    if first in ("model", "adapter_id"):
        return "model"
    if first.startswith(("text", "outputs")):
        return param
    return f"parameters.{rest if first in ('gate', 'adapt') else param}"
