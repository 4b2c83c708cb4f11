"""What a calibrated gate admits, grants and refuses: pure functions of its state and a request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from abmll.assurance.certificates import Certificate, CoverageThreshold, threshold_for_coverage
from abmll.assurance.conformal import ConformalQuantile, conformal_set, fewest_scores
from abmll.prediction.settings import Thresholds
from abmll.text.tasks import CANNOT_TELL, Example, Query, shared_options, tells, unlabelled_options
from service.errors import (
    CalibrationMismatchError,
    CalibrationMissingError,
    CannotCertifyError,
    CertificateRevokedError,
    InvalidOptionsError,
    InvalidRequestError,
    LimitExceededError,
    ServiceError,
    over_limit,
)
from service.gating.labels import label_text
from service.gating.records import (
    USUAL_ALPHAS,
    USUAL_DELTA,
    USUAL_TARGETS,
    Admitted,
    CalibratedGate,
    CalibrateRequest,
    CalibrationView,
    GateRequest,
    ResolvedGate,
)
from service.gating.state import Conditions, GateState, Outcome, outcome_key, text_digest

if TYPE_CHECKING:
    from abmll.prediction.run import Prediction
    from abmll.prediction.settings import PredictSettings
    from model_store.adapters.manifest import AdapterManifest
    from service.gating.questions import AdapterQuestion
    from service.settings import Settings


def labelled_examples(
    request: CalibrateRequest, manifest: AdapterManifest, question: AdapterQuestion | None
) -> Admitted:
    """Return all examples of `request`, as examples of `question`, without regard to others.

    Raises `InvalidRequestError` and `InvalidOptionsError`, which name the wrong one.
    """
    if question is None:
        if request.cases:
            message = "the adapter was made from examples without instructions: send examples, not cases"
            raise InvalidRequestError(message, "cases")
        shared = shared_options(manifest.support.examples)
        rows = [
            Example(
                row.input,
                label_text(row.label, None, f"examples[{i}].output"),
                row.options or shared,
            )
            for i, row in enumerate(request.examples)
        ]
        return Admitted(tuple(rows), tuple(f"examples[{i}]" for i in range(len(rows))))
    asked, name = question.question, question.name
    labelled = [
        (f"examples[{i}]", f"examples[{i}].output", row.input, row.label)
        for i, row in enumerate(request.examples)
    ] + [
        (f"cases[{i}]", f"cases[{i}].answers.{name}", case.input, case.labels[name])
        for i, case in enumerate(request.cases)
        if name in case.labels
    ]
    if not labelled:
        raise InvalidRequestError(f"no case answers the question {name!r:.80}", "cases")
    examples = []
    for _, param, text, label in labelled:
        answer = label_text(label, question, param)
        examples.append(asked.example(text, None if answer == CANNOT_TELL else answer))
    return Admitted(tuple(examples), tuple(row[0] for row in labelled), question=question)


def _nothing_new(adapter_id: str, counted: int) -> str:
    """Return why no example of a request counts, and what to do, if `counted` of them did before."""
    if not counted:
        return "no example is left: the adapter was made from all of them. Send labels that were kept back"
    return (
        "no example is left: all are counted already, or the adapter was made from them. Read the result with "
        f"GET /v1/adapters/{adapter_id}/calibration, or count these labels anew with `replace`: true"
    )


def admit_examples(
    given: Admitted,
    request: CalibrateRequest,
    manifest: AdapterManifest,
    state: GateState | None,
    settings: Settings,
) -> Admitted:
    """Return those of the `given` examples that count, with warnings about the others.

    Raises `ServiceError` that names the wrong example.
    """
    known = set(state.keys) if state is not None else set()
    admitted: list[tuple[Example, str]] = []
    in_support = counted = 0
    for example, place in zip(given.examples, given.places, strict=True):
        if example.options and example.output not in example.options:
            raise InvalidOptionsError("the output is not among the options", f"{place}.output")
        if not example.output.strip():
            raise InvalidRequestError("the output is empty", f"{place}.output")
        key = outcome_key(example.query, given.digest)
        if manifest.support.has_input(example.input):
            in_support += 1
        elif key in known:
            counted += 1
        else:
            known.add(key)
            admitted.append((example, place))
    if state is not None:
        check_extendable(state, conditions_of(manifest, request.settings, state.conditions.confidence_kind))
    field = "examples" if request.examples else "cases"
    if not admitted:
        raise InvalidRequestError(_nothing_new(manifest.id, counted), field)
    total = len(admitted) + (len(state.items) if state is not None else 0)
    if total > settings.max_calibration:
        message = over_limit(f"{total} examples in all", settings.max_calibration, "max_calibration")
        raise LimitExceededError(message, field)
    warnings = []
    if in_support:
        warnings.append(f"{in_support} examples are left out: the adapter was made from them")
    if counted:
        warnings.append(
            f"{counted} examples are left out: their inputs are counted already, with the label that came first"
        )
    examples, places = zip(*admitted, strict=True)
    if unseen := unlabelled_options(examples):
        names = ", ".join(map(repr, unseen))
        warnings.append(
            f"no example that counts is labelled {names}: a certificate says little about such inputs"
        )
    return replace(given, examples=examples, places=places, warnings=tuple(warnings))


def outcome_of(example: Example, prediction: Prediction, confidence: float, question: str = "") -> Outcome:
    """Return the outcome of a labelled example; `question` is the digest of its question.

    Where the input does not tell the answer, every answer is wrong, and there is no score: a
    prediction set holds the right option of inputs that have one.
    """
    predictive = prediction.predictive
    score = None
    if example.options and tells(example):
        score = 1 - predictive.probabilities[predictive.options.index(example.output)]
    correct = tells(example) and text_digest(predictive.answer) == text_digest(example.output)
    return Outcome(outcome_key(example.query, question), confidence, correct, score)


def feedback_warnings(contradicted: int, uncounted: int, settings: Settings) -> tuple[str, ...]:
    """Return warnings about labels that change nothing.

    `contradicted` predictions have an earlier label that says the opposite. `uncounted` labels were
    asked for, and found the calibration full.
    """
    warnings = []
    if contradicted:
        warnings.append(
            f"the labels of {contradicted} predictions contradict the first ones, which stay: "
            "if a first label was wrong, calibrate anew with replace"
        )
    if uncounted:
        found = f"{uncounted} labels are stored and do not count: the calibration is full"
        warnings.append(over_limit(found, settings.max_calibration, "max_calibration"))
    return tuple(warnings)


def has_options(manifest: AdapterManifest) -> bool:
    """Return whether the adapter chooses from options."""
    return any(example.options for example in manifest.support.examples)


def conditions_of(manifest: AdapterManifest, settings: PredictSettings, kind: str) -> Conditions:
    """Return the conditions of the adapter's predictions with `settings`."""
    tokens = None if has_options(manifest) else settings.max_new_tokens
    return Conditions(kind, settings.samples, settings.seed, tokens)


def check_conditions(calibrated: GateState | CalibratedGate, asked: Conditions) -> None:
    """Raise `CalibrationMismatchError` unless the calibration has the conditions `asked`."""
    calibration = calibrated.conditions
    for name in ("samples", "seed", "max_new_tokens", "confidence_kind"):
        if getattr(calibration, name) != getattr(asked, name):
            message = (
                f"calibrated with {name} {getattr(calibration, name)!r}, not {getattr(asked, name)!r}: "
                "other confidences than those that were calibrated"
            )
            raise CalibrationMismatchError(message, name)


def check_extendable(state: GateState, asked: Conditions) -> None:
    """Raise `CertificateRevokedError` or `CalibrationMismatchError` if examples cannot be added."""
    if state.revoked is not None:
        message = f"the calibration is revoked ({state.revoked}): begin anew with replace and new examples"
        raise CertificateRevokedError(message, "replace")
    check_conditions(state, asked)


def granted_threshold(state: GateState, request: GateRequest) -> Certificate | CoverageThreshold | None:
    """Return the threshold that `request` asks for, if any. Raises `CannotCertifyError`."""
    if request.target_coverage is not None:
        return threshold_for_coverage(state.confidences, request.target_coverage)
    if request.target_error is None:
        return None
    found = state.certificate(request.target_error, request.delta)
    if isinstance(found, Certificate):
        return found
    more = found.about_n_more_labels
    message = (
        f"cannot certify yet: about {more} more labels needed for error {request.target_error:g}"
        if more is not None
        else f"cannot certify error {request.target_error:g}: even the most confident answers are wrong more often, and more "
        "labels of the same kind promise nothing"
    )
    raise CannotCertifyError(message, "gate.target_error", about_n_more_labels=more)


def resolved_gate(
    state: GateState, request: GateRequest, manifest: AdapterManifest, settings: PredictSettings
) -> ResolvedGate:
    """Return the gate that a calibration gives. Raises as `GateKeeper.resolve`."""
    if state.held:
        message = "more calibration examples were announced: send the last without more_follow"
        raise CalibrationMissingError(message, "adapter_id")
    if state.revoked is not None and request.promises:  # predictions may still be logged
        message = f"the certificate is revoked: {state.revoked}; calibrate anew with replace and new examples"
        raise CertificateRevokedError(message, "gate" if request.alpha is None else "set")
    check_conditions(state, conditions_of(manifest, settings, state.conditions.confidence_kind))
    if request.alpha is not None and not has_options(manifest):
        raise InvalidRequestError("a prediction set needs options to choose from", "set")
    threshold = granted_threshold(state, request)
    calibrated = CalibratedGate(
        manifest,
        state.lineage,
        state.conditions,
        state.id,
        state.version,
        threshold,
        None if request.alpha is None else state.quantile(request.alpha),
        state.question,
    )
    if threshold is None:
        return ResolvedGate(request.thresholds, calibrated)
    return ResolvedGate(Thresholds(min_confidence=threshold.threshold), calibrated)


def options_in_set(quantile: ConformalQuantile | None, prediction: Prediction) -> tuple[str, ...] | None:
    """Return the options of the prediction set; None where none was asked for."""
    if quantile is None:
        return None
    predictive = prediction.predictive
    return tuple(predictive.options[i] for i in conformal_set(predictive.probabilities, quantile.q))


def set_note(quantile: ConformalQuantile) -> str:
    """Return what a prediction set guarantees, in words."""
    if quantile.attainable:
        return f"holds the right option with probability at least {quantile.coverage:.4g}, over calibration and input together"
    return (
        f"{quantile.n} labelled examples are fewer than the {fewest_scores(quantile.alpha)} that alpha {quantile.alpha:g} needs: "
        "the only valid set is every option"
    )


def view_of(state: GateState, question: AdapterQuestion | None = None) -> CalibrationView:
    """Return the calibration of a question as it is now."""
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
        quantiles=[state.quantile(a) for a in USUAL_ALPHAS] if shown and _has_scores(state) else [],
        counts=state.counts,
        question=question,
    )


def _has_scores(state: GateState) -> bool:
    return any(item.score is not None for item in state.items)


def missing_calibration(adapter_id: str) -> ServiceError:
    """Return the error for an adapter, or a question of one, without a calibration."""
    return CalibrationMissingError(
        f"adapter {adapter_id[:100]} is not calibrated: POST labelled examples to its calibrate", "adapter_id"
    )


@contextmanager
def question_named(query: Query, number: int) -> Iterator[None]:
    """Have errors from inside name the question of `query`, which is at `number` in its request."""
    try:
        yield
    except ServiceError as error:
        if not query.instruction:
            raise
        named = error.about(f"the question {query.instruction!r:.80}")
        raise (named.at(f"inputs[{number}].question") if error.param == "adapter_id" else named) from error
