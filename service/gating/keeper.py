"""Calibrated gates: the state of every adapter's gate, in memory and in journals.

The engine calls `GateKeeper.resolve` before any model work; it refuses what cannot be granted and
returns the thresholds to decide with. The engine decides, and calls `log_predictions` before it
returns the predictions.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from abmll.assurance.certificates import Certificate
from abmll.prediction.settings import Thresholds
from abmll.text.tasks import Example, Query
from model_store.errors import CorruptArtifactError, StoreError, UnsupportedFormatError
from service.errors import (
    CalibrationMissingError,
    CertificateRevokedError,
    InvalidOptionsError,
    InvalidRequestError,
    StoreFailedError,
    UnknownPredictionError,
)
from service.gating.records import (
    CalibratedGate,
    CalibrateRequest,
    CalibrationView,
    FeedbackOutcome,
    GateRequest,
    ResolvedGate,
)
from service.gating.rules import (
    admit_examples,
    check_conditions,
    check_extendable,
    conditions_of,
    feedback_warnings,
    granted_threshold,
    has_options,
    missing_calibration,
    options_in_set,
    outcome_of,
    view_of,
)
from service.gating.state import (
    GateState,
    Logged,
    begin_record,
    examples_record,
    input_key,
    is_asked,
    labels_record,
    option_digests,
    prediction_id,
    predictions_record,
    read_state,
    revoked_record,
    text_digest,
)

if TYPE_CHECKING:
    from abmll.prediction.settings import PredictSettings
    from model_store.adapters.gate_journals import GateJournals
    from model_store.adapters.journals import Record
    from model_store.adapters.manifest import AdapterManifest
    from service.gating.decisions import DecidedPrediction
    from service.metrics import Metrics
    from service.settings import Settings

log = logging.getLogger(__name__)

_MOST_STATES = 256


class GateKeeper:
    """Owns the state of all calibrated gates. Used from one event loop.

    The disk is written in threads, one write at a time, and always before memory. The caller checks
    that the adapter exists.
    """

    def __init__(self, settings: Settings, store: GateJournals, metrics: Metrics) -> None:
        self._settings, self._store, self._metrics = settings, store, metrics
        self._states: OrderedDict[str, GateState] = OrderedDict()
        self._lock = asyncio.Lock()  # held while journal and memory change together

    async def admit(
        self, request: CalibrateRequest, manifest: AdapterManifest
    ) -> tuple[list[Example], list[str]]:
        """Return the examples of `request` that count, and warnings about the others.

        Raises `ServiceError` that names the wrong example.
        """
        async with self._lock:
            state = None if request.replace else await self._find(request.adapter_id)
        return admit_examples(request, manifest, state, self._settings)

    async def add(
        self,
        request: CalibrateRequest,
        manifest: AdapterManifest,
        examples: Sequence[Example],
        decided: Sequence[DecidedPrediction],
    ) -> CalibrationView:
        """Add the outcomes of the admitted `examples`, which were predicted as `decided`.

        Raises `ServiceError`.
        """
        conditions = conditions_of(manifest, request.settings, decided[0].confidence.function)
        outcomes = [
            outcome_of(example, row.prediction, row.confidence.value)
            for example, row in zip(examples, decided, strict=True)
        ]
        async with self._lock:
            old = await self._find(request.adapter_id)
            if request.replace or old is None:
                version = old.version + 1 if old is not None else 1
                record = begin_record(
                    request.adapter_id, conditions, outcomes, held=request.more_follow, version=version
                )
                state = await self._begin(request.adapter_id, [record])
            else:
                state = old
                check_extendable(state, conditions)
                # Another call may have added some of them since they were admitted.
                fresh = [outcome for outcome in outcomes if outcome.key not in state.keys]
                await self._append(state, examples_record(fresh, held=request.more_follow))
            self._metrics.calibration_examples.inc(len(outcomes))
            self._count_states()
            return view_of(state)

    async def view(self, adapter_id: str) -> CalibrationView:
        """Return the adapter's calibration. Raises `CalibrationMissingError`."""
        async with self._lock:
            return view_of(await self._get(adapter_id))

    async def forget(self, adapter_id: str) -> bool:
        """Delete the adapter's calibration and its feedback; return whether there was one."""
        async with self._lock:
            self._states.pop(adapter_id, None)
            self._count_states()
            return await asyncio.to_thread(self._store.delete, adapter_id)

    async def resolve(
        self, request: GateRequest, manifest: AdapterManifest, settings: PredictSettings
    ) -> ResolvedGate:
        """Return the gate for predictions with `settings` by the adapter of `manifest`.

        Raises `CalibrationMissingError`, `CalibrationMismatchError`, `CannotCertifyError`,
        `CertificateRevokedError`, and `InvalidRequestError` for a prediction set without options.
        """
        if not request.needs_calibration:
            return ResolvedGate(request.thresholds)
        async with self._lock:
            state = await self._get(manifest.id)
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
            )
        if threshold is None:
            return ResolvedGate(request.thresholds, calibrated)
        return ResolvedGate(Thresholds(min_confidence=threshold.threshold), calibrated)

    async def log_predictions(
        self,
        gate: ResolvedGate,
        queries: Sequence[Query],
        settings: PredictSettings,
        decided: Sequence[DecidedPrediction],
    ) -> Sequence[DecidedPrediction]:
        """Log predictions of a calibrated gate; return them with their ids and prediction sets.

        Return predictions of other gates as they are. Raises `CalibrationMismatchError` and
        `StoreFailedError`.
        """
        calibrated = gate.calibrated
        if calibrated is None:
            return decided
        manifest = calibrated.manifest
        check_conditions(calibrated, conditions_of(manifest, settings, decided[0].confidence.function))
        support = {example.input for example in manifest.support.examples}
        entries = []
        async with self._lock:
            state = await self._find(manifest.id)
            if state is not None and state.lineage != calibrated.lineage:
                state = None  # another calibration than the gate was resolved with
            for query, row in zip(queries, decided, strict=True):
                options = row.prediction.predictive.options if has_options(manifest) else ()
                key = input_key(query.input, options)
                id = prediction_id(calibrated.lineage, key)
                known = state.logged.get(id) if state is not None else None
                seen = query.input in support or (state is not None and key in state.keys)
                entries.append(known or self._entry(calibrated, id, key, row, seen))
            if state is not None:
                fresh = {entry.id: entry for entry in entries if entry.id not in state.logged}
                if fresh:
                    state = await self._make_room(state, len(fresh))
                    await self._append(state, predictions_record(fresh.values()))
                    await self._revoke_on_drift(state)
        return tuple(
            replace(
                row,
                prediction_id=entry.id if state is not None else None,
                label_asked=entry.asked,
                options_in_set=options_in_set(calibrated.quantile, row.prediction),
            )
            for entry, row in zip(entries, decided, strict=True)
        )

    async def feedback(self, adapter_id: str, labels: Sequence[tuple[str, str]]) -> FeedbackOutcome:
        """Add labels of logged predictions, each a pair of prediction id and label.

        The first label of a prediction stays: alarms have bet on it, and looks of a certificate have
        counted it. The view warns of later ones that contradict it. Raises `CalibrationMissingError`; raises
        `UnknownPredictionError` and `InvalidOptionsError` that name the row, with nothing stored.
        """
        async with self._lock:
            state = await self._get(adapter_id)
            new: dict[str, bool] = {}
            contradicted: dict[str, None] = {}  # a set in the order of the labels
            for i, (id, label) in enumerate(labels):
                entry = state.logged.get(id)
                if entry is None:
                    message = f"no prediction {id[:100]!r} is remembered under this calibration"
                    raise UnknownPredictionError(message, f"feedback[{i}].prediction_id")
                if entry.options and option_digests([label])[0] not in entry.options:
                    raise InvalidOptionsError(
                        "the label is not among the input's options", f"feedback[{i}].label"
                    )
                correct = text_digest(label) == entry.answer
                if new.setdefault(id, state.labelled.get(id, correct)) != correct:
                    contradicted[id] = None
            new = {id: correct for id, correct in new.items() if id not in state.labelled}
            asked = {id for id in new if state.logged[id].asked}
            room = max(0, self._settings.max_calibration - len(state.items))
            counting = set([id for id in new if id in asked][:room])
            if new:
                await self._append(state, labels_record(new, counting))
                await self._revoke_on_drift(state)
            self._metrics.feedback_labels.labels("yes").inc(len(asked))
            self._metrics.feedback_labels.labels("no").inc(len(new) - len(asked))
            self._count_states()
            warnings = feedback_warnings(len(contradicted), len(asked - counting), self._settings)
            view = replace(view_of(state), warnings=warnings)
            return FeedbackOutcome(len(new), len(asked), len(labels) - len(new), tuple(contradicted), view)

    def _entry(
        self, calibrated: CalibratedGate, id: str, key: str, row: DecidedPrediction, seen: bool
    ) -> Logged:
        threshold, confidence = calibrated.threshold, row.confidence.value
        gated_at = None
        if isinstance(threshold, Certificate) and confidence >= threshold.threshold:
            gated_at = threshold.target_error
        predictive = row.prediction.predictive
        return Logged(
            id=id,
            key=key,
            confidence=confidence,
            answer=text_digest(predictive.answer),
            options=tuple(option_digests(predictive.options)) if has_options(calibrated.manifest) else (),
            asked=not seen and is_asked(calibrated.lineage, id, self._settings.feedback_share),
            gated_at=gated_at,
        )

    async def _get(self, adapter_id: str) -> GateState:
        state = await self._find(adapter_id)
        if state is None:
            raise missing_calibration(adapter_id)
        return state

    async def _find(self, adapter_id: str) -> GateState | None:
        """Return the adapter's state, read from the journal if necessary. Needs the lock."""
        state = self._states.get(adapter_id)
        if state is None:
            state = await asyncio.to_thread(self._read, adapter_id)
            if state is None:
                return None
            self._hold(state)
        self._states.move_to_end(adapter_id)
        return state

    def _read(self, adapter_id: str) -> GateState | None:
        records = self._store.read(adapter_id)
        if records is None:
            return None
        try:
            return read_state(adapter_id, records, self._settings.alarm_delta)
        except CorruptArtifactError as error:
            self._store.move_aside(adapter_id, error)
            return None
        except UnsupportedFormatError as error:
            log.warning("the calibration of %s is ignored: %s", adapter_id, error)
            return None

    def _hold(self, state: GateState) -> None:
        self._states[state.adapter_id] = state
        if len(self._states) > _MOST_STATES:
            self._states.popitem(last=False)
        self._count_states()

    async def _begin(self, adapter_id: str, records: Sequence[Record]) -> GateState:
        await self._write(self._store.begin, adapter_id, records)
        state = GateState.of(records, self._settings.alarm_delta)
        self._hold(state)
        return state

    async def _append(self, state: GateState, record: Record) -> None:
        await self._write(self._store.append, state.adapter_id, record)
        state.apply(record)

    async def _write(self, write: Any, adapter_id: str, what: Any) -> None:
        # Shielded, so that journal and memory stay equal when a client leaves during the write.
        task = asyncio.ensure_future(asyncio.to_thread(write, adapter_id, what))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            self._states.pop(adapter_id, None)  # the next request reads it from the journal
            raise
        except (OSError, StoreError) as error:
            log.exception("the calibration of %s could not be stored", adapter_id)
            raise StoreFailedError(
                "the calibration could not be stored, so nothing is acknowledged"
            ) from error

    async def _revoke_on_drift(self, state: GateState) -> None:
        reason = state.drift() if state.revoked is None else None
        if reason is not None:
            log.warning("the certificates of %s are revoked: %s", state.adapter_id, reason)
            kind = "risk" if any(alarm.raised for alarm in state.alarms.values()) else "domain"
            self._metrics.drift_alarms.labels(kind).inc()
            await self._append(state, revoked_record(reason))
            self._count_states()

    async def _make_room(self, state: GateState, incoming: int) -> GateState:
        most = self._settings.max_logged
        if not state.logged or len(state.logged) + incoming <= most:
            return state
        return await self._begin(state.adapter_id, state.shortened(min(most // 2, max(0, most - incoming))))

    def _count_states(self) -> None:
        counts = Counter("active" if state.revoked is None else "revoked" for state in self._states.values())
        for name in ("active", "revoked"):
            self._metrics.calibrations.labels(name).set(counts[name])
