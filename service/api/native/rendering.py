"""Between the wire and the domain: requests inward, answers outward."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from abmll.text.tasks import Example, Query
from service import schemas
from service.engine.admission import count_labels
from service.engine.engine import Diagnosed, Obtained, Predicted
from service.engine.requests import AdaptOverrides, AdaptRequest, PredictRequest
from service.errors import InvalidRequestError
from service.gating.thresholds import Thresholds, abstain_reason

if TYPE_CHECKING:
    from abmll.assurance.diagnostics import Diagnosis
    from abmll.prediction.run import Prediction
    from abmll.prediction.semantic import TextAnswer
    from model_store.adapters import AdapterManifest
    from service.gating.confidence import Confidence


def adapt_request(body: schemas.CreateAdapterRequest | schemas.PredictRequest) -> AdaptRequest:
    """What the body asks to adapt to."""
    support = tuple(
        Example(row.input, row.output, _options(row.options, body.options)) for row in body.support or ()
    )
    asked = body.adapt.model_dump() if body.adapt else {}
    folds = asked.pop("calibration_folds", None)
    return AdaptRequest(support, AdaptOverrides(**asked), body.seed, body.truncate, body.model, folds)


def predict_request(body: schemas.PredictRequest) -> PredictRequest:
    """What the body asks to predict."""
    rows = [schemas.InputRow(input=row) if isinstance(row, str) else row for row in body.inputs]
    return PredictRequest(
        adapter=body.adapter_id if body.adapter_id is not None else adapt_request(body),
        queries=tuple(Query(row.input, _options(row.options, body.options)) for row in rows),
        samples=body.samples,
        seed=body.seed,
        max_new_tokens=body.max_new_tokens,
        truncate=body.truncate,
        model=body.model,
        # What was calibrated did not depend on a gate, so neither may the samples that `auto` draws here.
        gate=Thresholds() if body.calibrated else thresholds(body.gate),
        answers_per_sample=body.answers_per_sample,
        confidence=body.confidence,
    )


def _options(own: list[str] | None, shared: list[str] | None) -> tuple[str, ...]:
    return tuple(own or shared or ())


def thresholds(gate: schemas.Gate | None) -> Thresholds:
    """The raw thresholds that the body asks for. Raises `InvalidRequestError` for a gate whose threshold a calibration has."""
    if gate is None:
        return Thresholds()
    if gate.calibrated:  # nothing that does not know calibrations may pass it over in silence
        raise InvalidRequestError("a gate with a target needs the adapter's calibration", "gate")
    return Thresholds(
        gate.min_confidence,
        gate.min_margin,
        gate.max_mutual_information,
        gate.max_semantic_entropy,
        gate.min_logprob_per_token,
        gate.min_typicality,
    )


def adapter_object(manifest: AdapterManifest, diagnosis: Diagnosis | None = None) -> schemas.Adapter:
    """The adapter as the API shows it."""
    shown = None if diagnosis is None else schemas.Diagnosis.model_validate(asdict(diagnosis), strict=False)
    return schemas.Adapter(**_adapter_fields(manifest), diagnosis=shown)


def diagnose_response(diagnosed: Diagnosed, request_id: str) -> schemas.DiagnoseResponse:
    """The diagnosis, and how this request came by it."""
    values = {
        **asdict(diagnosed.diagnosis),
        "adapter_id": diagnosed.adapter.manifest.id,
        "cache": diagnosed.cache.value,
        "timings": asdict(diagnosed.timings),
        "request_id": request_id,
    }
    return schemas.DiagnoseResponse.model_validate(values, strict=False)


def create_response(obtained: Obtained, request_id: str) -> schemas.CreateAdapterResponse:
    """The adapter, and how this request came by it."""
    return schemas.CreateAdapterResponse(
        **_adapter_fields(obtained.adapter.manifest),
        cache=obtained.cache.value,
        timings=_timings(obtained),
        request_id=request_id,
    )


def predict_response(
    predicted: Predicted, gate: Thresholds, seed: int, request_id: str
) -> schemas.PredictResponse:
    """Predictions with their uncertainty and the gate's decision."""
    manifest = predicted.adapter.manifest
    return schemas.PredictResponse(
        adapter_id=manifest.id,
        predictions=[
            prediction_object(index, prediction, confidence, gate)
            for index, (prediction, confidence) in enumerate(
                zip(predicted.predictions, predicted.confidences, strict=True)
            )
        ],
        usage=schemas.Usage(
            support_tokens=manifest.support.tokens,
            prompt_tokens=sum(prediction.prompt_tokens for prediction in predicted.predictions),
            completion_tokens=sum(prediction.completion_tokens for prediction in predicted.predictions),
        ),
        seed=seed,
        warnings=list(manifest.warnings),
        calibrator=predicted.calibrator,
        cache=predicted.cache.value,
        timings=_timings(predicted),
        request_id=request_id,
    )


def prediction_object(
    index: int, prediction: Prediction, confidence: Confidence, gate: Thresholds
) -> schemas.Prediction:
    """The answer to the input at `index`, as far as it is known, with the gate's decision."""
    predictive = prediction.predictive
    reason = abstain_reason(predictive, confidence, gate, prediction.text, prediction.typicality)
    rows = zip(predictive.options, predictive.probabilities, predictive.stds, strict=True)
    return schemas.Prediction(
        index=index,
        answer=predictive.answer,
        confidence=confidence.value,
        confidence_kind=confidence.kind,
        margin=predictive.margin,
        decision="answer" if reason is None else "abstain",
        abstain_reason=reason,
        distribution=[schemas.OptionProbability(option=o, probability=p, std=s) for o, p, s in rows],
        uncertainty=schemas.UncertaintyReport(
            **asdict(predictive.uncertainty), typicality=prediction.typicality
        ),
        samples=predictive.samples,
        text=text_report(prediction.text) if prediction.text else None,
    )


def text_report(text: TextAnswer) -> schemas.TextReport:
    """What is known of a free-text answer."""
    return schemas.TextReport(
        sequence_logprob=text.sequence_logprob,
        logprob_per_token=text.logprob_per_token,
        tokens=text.tokens,
        complete=text.complete,
        semantic_entropy=text.entropy.total,
        expected_semantic_entropy=text.entropy.expected,
        semantic_mutual_information=text.entropy.mutual_information,
        clusters=[
            schemas.AnswerCluster(
                answer=cluster.answer,
                probability=cluster.probability,
                share=cluster.share,
                members=list(cluster.members),
            )
            for cluster in text.clusters
        ],
    )


def _timings(obtained: Obtained) -> schemas.Timings:
    return schemas.Timings(**asdict(obtained.timings))


def _adapter_fields(manifest: AdapterManifest) -> dict[str, Any]:
    support = manifest.support
    return {
        "id": manifest.id,
        "base": schemas.BaseInfo(**manifest.base.to_json()),
        "posterior": manifest.posterior_id,
        "support": schemas.SupportSummary(
            n=support.n, tokens=support.tokens, per_label=count_labels(support.examples)
        ),
        "options": list(support.options),
        "created": manifest.created,
        "diagnostics": schemas.Diagnostics(losses=list(manifest.losses), steps=len(manifest.losses)),
        "temperature": manifest.config.temperature.base,
        "held_out": schemas.HeldOutAnswers(**asdict(manifest.held_out)) if manifest.held_out else None,
        "warnings": list(manifest.warnings),
    }
