"""Between the Open Inference Protocol and the native requests and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic_core import from_json

from service import schemas
from service.api.error_answers import message_with_field
from service.api.native.predicting import native_request
from service.api.native.rendering import adapt_request
from service.api.oip import wire
from service.api.oip.binary import decode_texts, encode
from service.engine.admission import OptionRule
from service.errors import InvalidRequestError, ServiceError

if TYPE_CHECKING:
    from model_store.adapters import AdapterManifest

VERSION = "1"
"""An adapter's id names its content, so there is never another version."""

_OF_OPTIONS = ("probabilities", "options")
_ANY = -1
_Data: TypeAlias = "list[str] | list[float]"


@dataclass(frozen=True)
class Model:
    """An adapter by its id; or the base model by its own, without a manifest, which is adapted to the support it is sent."""

    name: str
    manifest: AdapterManifest | None = None

    @property
    def options(self) -> OptionRule | None:
        """Those of the adapter; None for the base model, which gets them with the request."""
        return OptionRule.of(self.manifest.support.examples) if self.manifest else None


# ---- metadata -------------------------------------------------------------------------------------------------------


def metadata(model: Model) -> wire.ModelMetadata:
    """The model's tensors. An adapter for free text has none of options."""
    rule = model.options
    classes = len(rule.shared) or _ANY if rule else _ANY
    return wire.ModelMetadata(
        name=model.name,
        versions=[VERSION],
        inputs=[wire.TensorMetadata(name="text", datatype="BYTES", shape=[_ANY])],
        outputs=[
            wire.TensorMetadata(name=name, datatype=datatype, shape=shape)
            for name, (datatype, shape) in _outputs(_ANY, classes).items()
            if rule is None or rule.needed or name not in _OF_OPTIONS
        ],
    )


def _outputs(texts: int, classes: int) -> dict[str, tuple[wire.Datatype, list[int]]]:
    return {
        "answer": ("BYTES", [texts]),
        "confidence": ("FP64", [texts]),
        "decision": ("BYTES", [texts]),
        "probabilities": ("FP64", [texts, classes]),
        "options": ("BYTES", [classes]),
        "mutual_information": ("FP64", [texts]),
    }


# ---- requests -------------------------------------------------------------------------------------------------------


def predict_request(model: Model, body: wire.InferRequest, tensors: bytes) -> schemas.PredictRequest:
    """The same question to `POST /v1/predict`; `tensors` are the bytes after the JSON. Raises `InvalidRequestError`."""
    given = body.parameters
    fields: dict[str, Any] = {
        "inputs": texts_of(body.inputs, tensors),
        "options": _json("options", given.options),
        "samples": given.samples,
        "seed": given.seed,
        "gate": _picked(schemas.Gate, given),
        "truncate": given.truncate,
        "max_new_tokens": given.max_new_tokens,
    }
    adapt = _picked(schemas.Adapt, given)
    if model.manifest is None:
        if given.support is None:
            raise InvalidRequestError(f"{model.name!r} is the base model, which needs examples", "support")
        support = _json("support", given.support)
        return native_request({"model": model.name, "support": support, "adapt": adapt, **fields})
    if given.support is not None or adapt is not None:
        message = f"{model.name!r} is already fitted: support, and how to fit, are for the base model"
        raise InvalidRequestError(message, "support" if given.support is not None else None)
    return native_request({"adapter_id": model.name, **fields})


def _picked(part: type[schemas.WireModel], given: wire.InferParameters) -> dict[str, Any] | None:
    """The fields of `part` that are given, as its JSON; None if there are none."""
    return given.model_dump(include=set(part.model_fields), exclude_none=True) or None


def _json(name: str, text: str | None) -> Any:
    try:
        return None if text is None else from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequestError(f"the text is not JSON: {error}", name) from error


def texts_of(inputs: Sequence[wire.InputTensor], tensors: bytes) -> list[str]:
    """The texts of the one input `text`, from its JSON or from `tensors`. Raises `InvalidRequestError`."""
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
    """The options that all texts of the request have; empty for free text."""
    return tuple(native.options or (model.options or OptionRule.of(adapt_request(native).support)).shared)


@dataclass(frozen=True)
class Wanted:
    """An output to return, and whether as binary data."""

    name: str
    binary: bool


def wanted_outputs(body: wire.InferRequest, options: Sequence[str]) -> list[Wanted]:
    """The outputs that are asked for, all if none is named. Raises `InvalidRequestError` for one that there is not."""
    names = [name for name in _outputs(_ANY, _ANY) if options or name not in _OF_OPTIONS]
    binary = body.parameters.binary_data_output
    if not body.outputs:
        return [Wanted(name, binary) for name in names]
    wanted = []
    for i, output in enumerate(body.outputs):
        if output.name not in names:
            message = f"there is no output {output.name[:80]!r} here; there are {', '.join(names)}"
            raise InvalidRequestError(message, f"outputs[{i}].name")
        own = output.parameters.binary_data
        wanted.append(Wanted(output.name, binary if own is None else own))
    if len({output.name for output in wanted}) < len(wanted):
        raise InvalidRequestError("an output is named twice", "outputs")
    return wanted


def field_name(param: str) -> str:
    """The field of an inference request that `param` of the native request comes from."""
    head, _, tail = param.partition(".")
    if head.startswith("inputs"):
        return f"text{head.removeprefix('inputs')}"
    if head in ("model", "adapter_id"):
        return "model"
    if head.startswith(("text", "outputs")):
        return param
    return f"parameters.{tail if head in ('gate', 'adapt') else param}"


# ---- answers --------------------------------------------------------------------------------------------------------


def infer_response(
    answer: schemas.PredictResponse, model: Model, request_id: str | None, wanted: Sequence[Wanted]
) -> tuple[wire.InferResponse, bytes]:
    """The native answer as tensors, and the bytes of those that are wanted as binary data."""
    rows = answer.predictions
    data: dict[str, _Data] = {
        "answer": [row.answer for row in rows],
        "confidence": [row.confidence for row in rows],
        "decision": [str(row.decision) for row in rows],
        "probabilities": [share.probability for row in rows for share in row.distribution],
        "options": [share.option for share in rows[0].distribution],
        "mutual_information": [row.uncertainty.mutual_information for row in rows],
    }
    described = _outputs(len(rows), len(data["options"]))
    outputs, tensors = [], bytearray()
    for output in wanted:
        datatype, shape = described[output.name]
        tensor: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": shape}
        if output.binary:
            encoded = encode(datatype, data[output.name])
            tensors += encoded
            tensor["parameters"] = wire.OutputParameters(binary_data_size=len(encoded))
        else:
            tensor["data"] = data[output.name]
        outputs.append(wire.OutputTensor(**tensor))
    response = wire.InferResponse(
        model_name=model.name,
        model_version=VERSION,
        id=request_id,
        parameters=wire.AnswerParameters(adapter_id=answer.adapter_id, seed=answer.seed, cache=answer.cache),
        outputs=outputs,
    )
    return response, bytes(tensors)


def error_shape(error: ServiceError, request_id: str) -> dict[str, Any]:
    """The error as the protocol tells errors; the request's id is in the headers."""
    del request_id
    return wire.InferError(error=message_with_field(error)).model_dump()
