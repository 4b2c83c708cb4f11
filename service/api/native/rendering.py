"""Renders answers of the engine as the native wire. Decides nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from abmll.text.tasks import count_labels
from service import schemas
from service.api.native.gate_rendering import gate_report
from service.api.native.typed_answers import adapter_questions
from service.engine.answers import Answered, Diagnosed, Obtained
from service.gating.rules import set_note

if TYPE_CHECKING:
    from abmll.assurance.conformal import ConformalQuantile
    from abmll.assurance.diagnostics import Diagnosis
    from abmll.assurance.held_out import HeldOutSummary
    from abmll.prediction.semantic import TextAnswer
    from model_store.adapters.manifest import AdapterManifest
    from service.gating.decisions import DecidedPrediction


def adapter_object(manifest: AdapterManifest, diagnosis: Diagnosis | None = None) -> schemas.Adapter:
    """Render an adapter."""
    shown = None
    if diagnosis is not None:
        shown = schemas.Diagnosis.model_validate(_diagnosis_fields(diagnosis), strict=False)
    return schemas.Adapter(**_adapter_fields(manifest), diagnosis=shown)


def diagnose_response(diagnosed: Diagnosed, request_id: str) -> schemas.DiagnoseResponse:
    """Render a diagnosis, and how this request came by it."""
    values = {
        **_diagnosis_fields(diagnosed.diagnosis),
        "adapter_id": diagnosed.adapter.manifest.id,
        "cache": diagnosed.cache.value,
        "timings": asdict(diagnosed.timings),
        "request_id": request_id,
    }
    return schemas.DiagnoseResponse.model_validate(values, strict=False)


def _diagnosis_fields(diagnosis: Diagnosis) -> dict[str, Any]:
    questions = []
    for values in map(asdict, diagnosis.questions):
        evidence, name = values.pop("evidence") or {}, values.pop("name")
        questions.append({"name": name or None, **values, **evidence})
    return {**asdict(diagnosis), "questions": questions or None}


def create_response(obtained: Obtained, request_id: str) -> schemas.CreateAdapterResponse:
    """Render an adapter, and how this request came by it."""
    return schemas.CreateAdapterResponse(
        **_adapter_fields(obtained.adapter.manifest),
        cache=obtained.cache.value,
        refines_to=obtained.refines_to,
        timings=_timings(obtained),
        request_id=request_id,
    )


def predict_response(answered: Answered, seed: int, request_id: str) -> schemas.PredictResponse:
    """Render predictions, and the calibrated gate that decided, if one did."""
    manifest, gate = answered.adapter.manifest, answered.calibrated_gate
    predictions = [row.prediction for row in answered.predictions]
    quantile = gate.quantile if gate else None
    return schemas.PredictResponse(
        adapter_id=manifest.id,
        model=answered.model,
        predictions=[
            prediction_object(index, row, quantile) for index, row in enumerate(answered.predictions)
        ],
        usage=schemas.Usage(
            support_tokens=manifest.support.tokens,
            prompt_tokens=sum(prediction.prompt_tokens for prediction in predictions),
            completion_tokens=sum(prediction.completion_tokens for prediction in predictions),
        ),
        seed=seed,
        warnings=[*manifest.warnings, *answered.warnings],
        gate=gate_report(gate) if gate else None,
        calibrator=answered.calibrator,
        cache=answered.cache.value,
        refines_to=answered.refines_to,
        timings=_timings(answered),
        request_id=request_id,
    )


def prediction_object(
    index: int, decided: DecidedPrediction, quantile: ConformalQuantile | None = None
) -> schemas.Prediction:
    """Render the prediction for the input at `index`, final or not, with the gate's decision."""
    prediction = decided.prediction
    predictive = prediction.predictive
    rows = zip(predictive.options, predictive.probabilities, predictive.stds, strict=True)
    shown = schemas.Prediction(
        index=index,
        answer=predictive.answer,
        confidence=decided.confidence.value,
        confidence_kind=decided.confidence.kind,
        margin=predictive.margin,
        decision=decided.decision,
        abstain_reason=decided.abstain_reason,
        distribution=[schemas.OptionProbability(option=o, probability=p, std=s) for o, p, s in rows],
        uncertainty=schemas.UncertaintyReport(
            **asdict(predictive.uncertainty),
            typicality=prediction.typicality,
            answerable=prediction.answerable,
        ),
        samples=predictive.samples,
        text=text_report(prediction.text) if prediction.text else None,
    )
    if decided.label_asked is None:  # OpenAI's surface leaves out fields that are not set
        return shown
    logged = {
        "prediction_id": decided.prediction_id,
        "explored": decided.label_asked,
        "prediction_set": _set(quantile, decided.options_in_set),
    }
    return shown.model_copy(update=logged)


def text_report(text: TextAnswer) -> schemas.TextReport:
    """Render the uncertainty of a free-text answer."""
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
        "questions": adapter_questions(support),
        "created": manifest.created,
        "diagnostics": schemas.Diagnostics(losses=list(manifest.losses), steps=len(manifest.losses)),
        "temperature": manifest.config.temperature.base,
        "held_out": held_out_report(manifest.held_out) if manifest.held_out else None,
        "warnings": list(manifest.warnings),
    }


def held_out_report(found: HeldOutSummary) -> schemas.HeldOutAnswers:
    """Render what held-out answers say."""
    questions = [schemas.HeldOutQuestion(**asdict(question)) for question in found.by_question]
    return schemas.HeldOutAnswers(
        n=found.n,
        correct=found.correct,
        nll=found.nll,
        temperature_factor=found.temperature_factor,
        questions=questions or None,
    )


# ---- calibrated gates


def _set(
    quantile: ConformalQuantile | None, options_in_set: tuple[str, ...] | None
) -> schemas.PredictionSet | None:
    if quantile is None or options_in_set is None:
        return None
    return schemas.PredictionSet(
        options=list(options_in_set),
        alpha=quantile.alpha,
        valid_for_alpha=quantile.attainable,
        coverage=quantile.coverage,
        n=quantile.n,
        note=set_note(quantile),
    )
