"""Between Cohere's Classify and the native requests and answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from service import schemas
from service.api.classify import wire
from service.api.error_answers import message_with_field
from service.api.native.predicting import native_request
from service.errors import InvalidSupportError, ServiceError

_FIELDS = {".input": ".text", ".output": ".label", ".options": ""}


def predict_request(body: wire.ClassifyRequest) -> schemas.PredictRequest:
    """The same question to `POST /v1/predict`. Raises `InvalidSupportError` unless there are two labels."""
    options: dict[str, Any] = {
        "inputs": body.inputs,
        "samples": body.abmll.samples,
        "seed": body.abmll.seed,
        "gate": body.abmll.gate,
        "truncate": body.truncate != "NONE",
    }
    if not body.examples:
        return native_request({"adapter_id": body.model, **options})
    support = [schemas.SupportRow(input=example.text, output=example.label) for example in body.examples]
    return native_request(
        {
            "model": body.model,
            "support": support,
            "options": _labels(body.examples),
            "adapt": body.abmll.adapt,
            **options,
        }
    )


def _labels(examples: Sequence[wire.ClassifyExample]) -> list[str]:
    labels = list(dict.fromkeys(example.label for example in examples))  # in order of first appearance
    if len(labels) < 2:
        raise InvalidSupportError(f"all are labelled {labels[0][:80]!r}: two labels are needed", "support")
    return labels


def field_name(param: str) -> str:
    """The field of a Classify request that `param` of the native request comes from."""
    if param.startswith("support"):
        row = param.replace("support", "examples", 1)
        return re.sub(r"\.\w+$", lambda field: _FIELDS.get(field[0], field[0]), row)
    if param == "adapter_id":
        return "model"
    return param if param.startswith(("inputs", "model", "truncate")) else f"abmll.{param}"


def classify_response(answer: schemas.PredictResponse, inputs: Sequence[str]) -> wire.ClassifyResponse:
    """The native answer to `inputs` as Classify's."""
    usage = answer.usage
    return wire.ClassifyResponse(
        id=answer.request_id,
        classifications=[
            _classification(f"{answer.request_id}-{prediction.index}", text, prediction)
            for text, prediction in zip(inputs, answer.predictions, strict=True)
        ],
        meta=wire.ClassifyMeta(
            billed_units=wire.BilledUnits(classifications=len(inputs)),
            tokens=wire.MetaTokens(input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens),
            warnings=answer.warnings,
        ),
        abmll=wire.ClassifyDetails(
            adapter_id=answer.adapter_id,
            seed=answer.seed,
            cache=answer.cache,
            usage=usage,
            timings=answer.timings,
        ),
    )


def _classification(identity: str, text: str, prediction: schemas.Prediction) -> wire.Classification:
    return wire.Classification(
        id=identity,
        input=text,
        prediction=prediction.answer,
        predictions=[prediction.answer],
        confidence=prediction.confidence,
        confidences=[prediction.confidence],
        labels={
            row.option: wire.LabelConfidence(confidence=row.probability) for row in prediction.distribution
        },
        abmll=wire.ClassificationDetails(
            confidence_kind=prediction.confidence_kind,
            margin=prediction.margin,
            decision=prediction.decision,
            abstain_reason=prediction.abstain_reason,
            uncertainty=prediction.uncertainty,
            samples=prediction.samples,
        ),
    )


def error_shape(error: ServiceError, request_id: str) -> dict[str, Any]:
    """The error as Cohere tells errors."""
    return wire.ClassifyError(message=message_with_field(error), id=request_id).model_dump()
