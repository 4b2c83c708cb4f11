"""From the native answer to tensors, and from errors to the protocol's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from service import schemas
from service.api.error_answers import message_with_field
from service.api.oip import wire
from service.api.oip.binary import encode
from service.api.oip.models import Model, output_tensors
from service.api.oip.requests import WantedOutput
from service.errors import ServiceError

_Data: TypeAlias = "list[str] | list[float]"


def infer_response(
    answer: schemas.PredictResponse, model: Model, request: wire.InferRequest, wanted: Sequence[WantedOutput]
) -> tuple[wire.InferResponse, bytes]:
    """Make the response to `request`, and the bytes of outputs that are sent as binary data."""
    rows = answer.predictions
    data: dict[str, _Data] = {
        "answer": [row.answer for row in rows],
        "confidence": [row.confidence for row in rows],
        "decision": [str(row.decision) for row in rows],
        "probabilities": [option.probability for row in rows for option in row.distribution],
        "options": [row.option for row in rows[0].distribution],
        "mutual_information": [row.uncertainty.mutual_information for row in rows],
    }
    described = output_tensors(len(rows), len(data["options"]))
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
        model_version=model.version,
        id=request.id,
        parameters=wire.AnswerParameters(
            adapter_id=answer.adapter_id,
            seed=answer.seed,
            cache=answer.cache,
            refines_to=answer.refines_to,
            ignored=request.parameters.ignored,
        ),
        outputs=outputs,
    )
    return response, bytes(tensors)


def error_shape(error: ServiceError, request_id: str) -> dict[str, Any]:
    """Make the protocol's error object. The request's id is in the headers only."""
    del request_id
    return wire.InferError(error=message_with_field(error)).model_dump()
