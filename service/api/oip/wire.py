"""The wire of the Open Inference Protocol, version 2, with the binary tensor data extension.

Source: https://github.com/kserve/open-inference-protocol,
`specification/protocol/inference_rest.md`. The protocol's parameters are scalars, so a list of the
native request is a text that holds JSON.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from service import schemas
from service.schemas import WireModel

Datatype = Literal["BYTES", "FP64"]


class InferParameters(schemas.Gate, schemas.Adapt):
    """The fields of `POST /v1/predict`, at one level.

    `support` and the fields of `Adapt` are for the base model only.
    """

    support: str | None = Field(
        default=None,
        description="Labelled examples as JSON text: a list of objects with `input` and `output`.",
    )
    options: str | None = Field(
        default=None, description="Options to choose from as JSON text: a list of texts."
    )
    samples: schemas.Samples = 16
    seed: schemas.Seed = 0
    truncate: bool = False
    max_new_tokens: int = Field(default=32, ge=1)
    binary_data_output: bool = Field(
        default=False, description="Send outputs as binary data where they do not say otherwise."
    )


class InputParameters(WireModel):
    """Parameters of an input in the binary tensor data extension."""

    binary_data_size: int | None = Field(
        default=None, ge=0, description="Number of bytes after the JSON object."
    )


_Element = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[str], Tag("<row>")],
    Discriminator(lambda value: "<row>" if isinstance(value, list) else "<text>"),
]


class InputTensor(WireModel):
    """The texts to answer."""

    name: str = Field(description="Always `text`.")
    shape: list[int] = Field(description="[n] or [n, 1].")
    datatype: str = Field(description="BYTES: texts in UTF-8.")
    parameters: InputParameters = Field(default_factory=InputParameters)
    data: list[_Element] | None = Field(default=None, description="Absent when it follows as binary data.")


class RequestedParameters(WireModel):
    """Parameters of a requested output in the binary tensor data extension."""

    binary_data: bool | None = Field(
        default=None, description="Send it after the JSON object, as binary data."
    )


class RequestedOutput(WireModel):
    """An output to return."""

    name: str
    parameters: RequestedParameters = Field(default_factory=RequestedParameters)


class InferRequest(WireModel):
    """Texts to answer."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["Where is it?"]}],
                    "outputs": [{"name": "answer"}, {"name": "confidence"}],
                    "parameters": {"samples": 16, "min_confidence": 0.7},
                }
            ]
        }
    )

    id: str | None = Field(default=None, description="Returned with the answer.")
    parameters: InferParameters = Field(default_factory=InferParameters)
    inputs: list[InputTensor]
    outputs: list[RequestedOutput] | None = Field(
        default=None, description="Outputs to return; by default all."
    )


class OutputParameters(WireModel):
    """Parameters of an output in the binary tensor data extension."""

    binary_data_size: int


class OutputTensor(WireModel):
    """One output, in row-major order."""

    name: str
    shape: list[int]
    datatype: Datatype
    parameters: OutputParameters | None = None
    data: list[str] | list[float] | None = Field(
        default=None, description="Absent when it follows as binary data."
    )


class AnswerParameters(WireModel):
    """Fields of the answer that are not tensors."""

    adapter_id: str
    seed: int
    cache: schemas.Cache


class InferResponse(WireModel):
    """Answers, in the order of the texts."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: AnswerParameters
    outputs: list[OutputTensor]


class TensorMetadata(WireModel):
    """Name, datatype and shape of a tensor. A length of -1 means any length."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(WireModel):
    """Inputs and outputs of a model."""

    name: str
    versions: list[str]
    platform: str = "abmll_posterior"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(WireModel):
    """The model answers."""

    name: str
    ready: Literal[True] = True


class ServerMetadata(WireModel):
    """Name, version and extensions of the server."""

    name: str = "abmll-serve"
    version: str
    extensions: list[Literal["binary_tensor_data"]]


class ServerLive(WireModel):
    """The process runs."""

    live: Literal[True] = True


class ServerReady(ServerLive):
    """The server accepts requests."""

    ready: Literal[True] = True


class InferError(WireModel):
    """Body of every answer that is not 2xx."""

    error: str
