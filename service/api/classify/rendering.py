"""From the native answer to Classify's, and from errors to Cohere's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service import schemas
from service.api.classify import wire
from service.api.error_answers import message_with_field
from service.errors import ServiceError


def classify_response(answer: schemas.PredictResponse, inputs: Sequence[str]) -> wire.ClassifyResponse:
    """Make Classify's answer to `inputs`."""
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
            model=answer.model,
            seed=answer.seed,
            cache=answer.cache,
            refines_to=answer.refines_to,
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
    """Make Cohere's error object."""
    return wire.ClassifyError(message=message_with_field(error), id=request_id).model_dump()
