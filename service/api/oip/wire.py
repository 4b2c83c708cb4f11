"""The wire of the Open Inference Protocol, version 2, with the binary tensor data extension.

Source: https://github.com/kserve/open-inference-protocol,
`specification/protocol/inference_rest.md`. The protocol's parameters are scalars, so a list of the
native request is a text that holds JSON. In requests null is none, and unknown parameters are
ignored, as other servers of the protocol do.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, Tag, model_validator

from service import schemas
from service.schemas import WireModel

Datatype = Literal["BYTES", "FP64"]
MAX_UNKNOWN = 32
"""Comparing a name with the known ones takes a millisecond of the event loop."""


class RequestObject(WireModel):
    """An object of a request: a field that is null counts as absent."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}


class InferParameters(schemas.Gate, schemas.Adapt, RequestObject):
    """The fields of `POST /v1/predict`, at one level.

    `support` and the fields of `Adapt` are for the base model only.
    """

    model_config = ConfigDict(extra="allow")

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
    sequence_id: schemas.Unsupported = None
    sequence_start: schemas.Unsupported = None
    sequence_end: schemas.Unsupported = None

    @property
    def ignored(self) -> str | None:
        """Names of the unknown parameters, separated by commas."""
        return ", ".join(sorted(self.model_extra or {}))[:200] or None

    @model_validator(mode="after")
    def _no_slips(self) -> Self:
        """Refuse a name that is nearly a known one: a gate with a slip must not be ignored."""
        unknown = self.model_extra or {}
        if len(unknown) > MAX_UNKNOWN:
            raise ValueError(f"{len(unknown)} unknown parameters; at most {MAX_UNKNOWN} are ignored")
        for name in unknown:
            if close := get_close_matches(name[:80], type(self).model_fields, n=1, cutoff=0.8):
                raise ValueError(f"there is no parameter {name[:80]!r}; is {close[0]!r} meant?")
        return self


class InputParameters(RequestObject):
    """Parameters of an input in the binary tensor data extension."""

    model_config = ConfigDict(extra="ignore")

    binary_data_size: int | None = Field(
        default=None, ge=0, description="Number of bytes after the JSON object."
    )
    shared_memory_region: schemas.Unsupported = None


_Element = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[str], Tag("<list>")],
    schemas.text_or_list("texts"),
]


class InputTensor(RequestObject):
    """The texts to answer."""

    name: str = Field(description="Always `text`.")
    shape: list[int] = Field(description="[n] or [n, 1].")
    datatype: str = Field(description="BYTES: texts in UTF-8.")
    parameters: InputParameters = Field(default_factory=InputParameters)
    data: list[_Element] | None = Field(default=None, description="Absent when it follows as binary data.")


class RequestedParameters(RequestObject):
    """Parameters of a requested output in the binary tensor data extension."""

    model_config = ConfigDict(extra="ignore")

    binary_data: bool | None = Field(
        default=None, description="Send it after the JSON object, as binary data."
    )
    shared_memory_region: schemas.Unsupported = None
    classification: schemas.Unsupported = None


class RequestedOutput(RequestObject):
    """An output to return."""

    name: str
    parameters: RequestedParameters = Field(default_factory=RequestedParameters)


class InferRequest(RequestObject):
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
    refines_to: schemas.RefinesTo = None
    ignored: str | None = Field(
        default=None, description="Parameters of the request that this server does not know."
    )


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
