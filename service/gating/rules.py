"""What a calibrated gate admits, grants and refuses: functions of its state and of what is asked."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from abmll.assurance.certificates import Certificate, CoverageThreshold, threshold_for_coverage
from abmll.assurance.conformal import ConformalQuantile, conformal_set, fewest_scores
from abmll.text.tasks import Example, shared_options
from service.errors import (
    CalibrationMismatchError,
    CalibrationMissingError,
    CannotCertifyError,
    CertificateRevokedError,
    InvalidOptionsError,
    InvalidRequestError,
    LimitExceededError,
    ServiceError,
)
from service.gating.records import (
    USUAL_ALPHAS,
    USUAL_DELTA,
    USUAL_TARGETS,
    CalibrateRequest,
    CalibrationView,
    GateRequest,
    Grant,
)
from service.gating.state import Conditions, GateState, Outcome, input_key, text_digest

if TYPE_CHECKING:
    from abmll.prediction.run import Prediction
    from abmll.prediction.settings import PredictSettings
    from model_store.adapters.manifest import AdapterManifest
    from service.settings import Settings


def admit_examples(
    request: CalibrateRequest, manifest: AdapterManifest, state: GateState | None, settings: Settings
) -> tuple[list[Example], list[str]]:
    """The examples that count, their options resolved, and what to warn of. Raises `ServiceError` naming the example."""
    support = {example.input for example in manifest.support.examples}
    shared = shared_options(manifest.support.examples)
    known = set(state.keys) if state is not None else set()
    kept: list[Example] = []
    in_support = counted = 0
    for i, given in enumerate(request.examples):
        example = given if given.options else replace(given, options=shared)
        if example.options and example.output not in example.options:
            raise InvalidOptionsError("the output is not among the options", f"examples[{i}].output")
        if not example.output.strip():
            raise InvalidRequestError("the output is empty", f"examples[{i}].output")
        key = input_key(example.input, example.options)
        if example.input in support:
            in_support += 1
        elif key in known:
            counted += 1
        else:
            known.add(key)
            kept.append(example)
    if state is not None:
        check_extendable(state, conditions_of(manifest, request.settings, state.conditions.confidence_kind))
    if not kept:
        raise InvalidRequestError(
            "no example is left: all are in the adapter's support or counted already", "examples"
        )
    total = len(kept) + (len(state.items) if state is not None else 0)
    if total > settings.max_calibration:
        message = f"{total} examples in all; the limit is {settings.max_calibration}"
        raise LimitExceededError(message, "examples")
    warnings = []
    if in_support:
        warnings.append(f"{in_support} examples are left out: the adapter was made from them")
    if counted:
        warnings.append(f"{counted} examples are left out: their inputs are counted already")
    return kept, warnings


def outcome_of(example: Example, prediction: Prediction, confidence: float) -> Outcome:
    """The outcome of a labelled example."""
    predictive = prediction.predictive
    score = None
    if example.options:
        score = 1 - predictive.probabilities[predictive.options.index(example.output)]
    correct = text_digest(predictive.answer) == text_digest(example.output)
    return Outcome(input_key(example.input, example.options), confidence, correct, score)


def has_options(manifest: AdapterManifest) -> bool:
    """Whether the adapter chooses from options."""
    return any(example.options for example in manifest.support.examples)


def conditions_of(manifest: AdapterManifest, settings: PredictSettings, kind: str) -> Conditions:
    """What makes confidences of predictions with `settings` comparable with others of this adapter."""
    tokens = None if has_options(manifest) else settings.max_new_tokens
    return Conditions(kind, settings.samples, settings.seed, tokens)


def check_conditions(calibrated: GateState | Grant, asked: Conditions) -> None:
    """Raise `CalibrationMismatchError` where confidences would be computed otherwise than they were calibrated."""
    was = calibrated.conditions
    for name in ("samples", "seed", "max_new_tokens", "confidence_kind"):
        if getattr(was, name) != getattr(asked, name):
            message = (
                f"calibrated with {name} {getattr(was, name)!r}, not {getattr(asked, name)!r}: "
                "other confidences than those that were calibrated"
            )
            raise CalibrationMismatchError(message, name)


def check_extendable(state: GateState, asked: Conditions) -> None:
    """Raise `CertificateRevokedError` or `CalibrationMismatchError` where examples cannot be added."""
    if state.revoked is not None:
        message = f"the calibration is revoked ({state.revoked}): begin anew with replace and new examples"
        raise CertificateRevokedError(message, "replace")
    check_conditions(state, asked)


def granted_threshold(state: GateState, ask: GateRequest) -> Certificate | CoverageThreshold | None:
    """The threshold that `ask` gets, if it asks for one. Raises `CannotCertifyError`."""
    if ask.target_coverage is not None:
        return threshold_for_coverage(state.confidences, ask.target_coverage)
    if ask.target_error is None:
        return None
    found = state.certificate(ask.target_error, ask.delta)
    if isinstance(found, Certificate):
        return found
    more = found.about_n_more_labels
    message = (
        f"cannot certify yet: about {more} more labels needed for error {ask.target_error:g}"
        if more is not None
        else f"cannot certify error {ask.target_error:g}: even the most confident answers are wrong more often, and more "
        "labels of the same kind promise nothing"
    )
    raise CannotCertifyError(message, "gate.target_error", about_n_more_labels=more)


def options_in_set(quantile: ConformalQuantile | None, prediction: Prediction) -> tuple[str, ...] | None:
    """The options of the prediction set, where one was asked for."""
    if quantile is None:
        return None
    predictive = prediction.predictive
    return tuple(predictive.options[i] for i in conformal_set(predictive.probabilities, quantile.q))


def set_note(quantile: ConformalQuantile) -> str:
    """What a prediction set promises, in words."""
    if quantile.attainable:
        return f"holds the right option with probability at least {quantile.coverage:.4g}, over calibration and input together"
    return (
        f"{quantile.n} labelled examples are fewer than the {fewest_scores(quantile.alpha)} that alpha {quantile.alpha:g} needs: "
        "the only valid set is every option"
    )


def view_of(state: GateState) -> CalibrationView:
    """The calibration as it stands."""
    shown = not state.held
    return CalibrationView(
        id=state.id,
        adapter_id=state.adapter_id,
        version=state.version,
        conditions=state.conditions,
        n=len(state.items),
        feedback=sum(item.feedback for item in state.items),
        held=state.held,
        revoked=state.revoked,
        accuracy=state.accuracy if shown else None,
        certificates={t: state.certificate(t, USUAL_DELTA) for t in USUAL_TARGETS} if shown else {},
        quantiles=[state.quantile(a) for a in USUAL_ALPHAS] if shown and _scored(state) else [],
        counts=state.counts,
    )


def _scored(state: GateState) -> bool:
    return any(item.score is not None for item in state.items)


def missing_calibration(adapter_id: str) -> ServiceError:
    """The error for an adapter without a calibration."""
    return CalibrationMissingError(
        f"adapter {adapter_id[:100]} is not calibrated: POST labelled examples to its calibrate", "adapter_id"
    )
