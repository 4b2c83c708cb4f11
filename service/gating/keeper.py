"""Calibrated gates: owns what is known of every adapter's gate, in memory and in the journals.

The gate is a step of the engine's road, in two parts: `open` before any model work, with all that can
be refused, and `close` with the predictions, which are logged before they are answered. The decision is
made with what `open` saw.
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
from model_store.errors import StoreError, UnsupportedFormatError
from service.errors import (
    CalibrationMissingError,
    CertificateRevokedError,
    InvalidOptionsError,
    InvalidRequestError,
    StoreFailedError,
    UnknownPredictionError,
)
from service.gating.decisions import DecidedPrediction, PredictionNote
from service.gating.records import (
    CalibrateRequest,
    CalibrationView,
    FeedbackOutcome,
    GateRequest,
    Grant,
    OpenGate,
)
from service.gating.rules import (
    admit_examples,
    check_conditions,
    check_extendable,
    conditions_of,
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
    revoked_record,
    text_digest,
)

if TYPE_CHECKING:
    from abmll.prediction.settings import PredictSettings
    from model_store.adapters.gate_journals import GateJournals, Record
    from model_store.adapters.manifest import AdapterManifest
    from service.metrics import Metrics
    from service.settings import Settings

log = logging.getLogger(__name__)

_MOST_STATES = 256


class GateKeeper:
    """Used from one event loop. The disk is written in threads, one write at a time, and always before memory.

    It knows adapters by their manifests alone; whoever calls has checked that there is such an adapter.
    """

    def __init__(self, settings: Settings, store: GateJournals, metrics: Metrics) -> None:
        self._settings, self._store, self._metrics = settings, store, metrics
        self._states: OrderedDict[str, GateState] = OrderedDict()
        self._lock = asyncio.Lock()  # held while journal and memory change together

    async def admit(
        self, request: CalibrateRequest, manifest: AdapterManifest
    ) -> tuple[list[Example], list[str]]:
        """The examples of `request` that count, and what to warn of. Raises `ServiceError` naming the example."""
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
        """Take in how the admitted `examples` came out. Raises `ServiceError`."""
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
                # Another call may have come between.
                fresh = [outcome for outcome in outcomes if outcome.key not in state.keys]
                await self._append(state, examples_record(fresh, held=request.more_follow))
            self._metrics.calibration_examples.inc(len(outcomes))
            self._count_states()
            return view_of(state)

    async def view(self, adapter_id: str) -> CalibrationView:
        """The adapter's calibration. Raises `CalibrationMissingError`."""
        async with self._lock:
            return view_of(await self._get(adapter_id))

    async def forget(self, adapter_id: str) -> bool:
        """Forget the adapter's calibration and its feedback; whether there was one."""
        async with self._lock:
            self._states.pop(adapter_id, None)
            self._count_states()
            return await asyncio.to_thread(self._store.delete, adapter_id)

    async def open(
        self, asked: GateRequest, manifest: AdapterManifest, settings: PredictSettings
    ) -> OpenGate:
        """The gate that `asked` gets for predictions with `settings` by the adapter of `manifest`.

        Raises `CalibrationMissingError`, `CalibrationMismatchError`, `CannotCertifyError`, `CertificateRevokedError`.
        """
        if not asked.needs_calibration:
            return OpenGate(asked.thresholds)
        async with self._lock:
            state = await self._get(manifest.id)
            if state.held:
                message = "more calibration examples were announced: send the last without more_follow"
                raise CalibrationMissingError(message, "adapter_id")
            if state.revoked is not None and asked.promises:  # predictions may still be logged
                message = f"the certificate is revoked: {state.revoked}; calibrate anew with replace and new examples"
                raise CertificateRevokedError(message, "gate" if asked.alpha is None else "set")
            check_conditions(state, conditions_of(manifest, settings, state.conditions.confidence_kind))
            if asked.alpha is not None and not has_options(manifest):
                raise InvalidRequestError("a prediction set needs options to choose from", "set")
            grant = Grant(
                manifest,
                state.lineage,
                state.conditions,
                state.id,
                state.version,
                granted_threshold(state, asked),
                None if asked.alpha is None else state.quantile(asked.alpha),
            )
        return OpenGate(_thresholds(asked, grant), grant)

    async def close(
        self,
        gate: OpenGate,
        queries: Sequence[Query],
        settings: PredictSettings,
        decided: Sequence[DecidedPrediction],
    ) -> Sequence[DecidedPrediction]:
        """Log decided predictions where the gate has a grant, and note on each what that adds.

        Raises `CalibrationMismatchError` and `StoreFailedError`.
        """
        grant = gate.grant
        if grant is None:
            return decided
        check_conditions(grant, conditions_of(grant.manifest, settings, decided[0].confidence.function))
        support = {example.input for example in grant.manifest.support.examples}
        entries = []
        async with self._lock:
            state = await self._find(grant.manifest.id)
            if state is not None and state.lineage != grant.lineage:
                state = None  # replaced or deleted meanwhile: what was seen is not there any more
            for query, row in zip(queries, decided, strict=True):
                options = row.prediction.predictive.options if has_options(grant.manifest) else ()
                key = input_key(query.input, options)
                id = prediction_id(grant.lineage, key)
                known = state.logged.get(id) if state is not None else None
                seen = query.input in support or (state is not None and key in state.keys)
                entries.append(known or self._entry(grant, id, key, row, seen))
            if state is not None:
                fresh = {entry.id: entry for entry in entries if entry.id not in state.logged}
                if fresh:
                    state = await self._make_room(state, len(fresh))
                    await self._append(state, predictions_record(fresh.values()))
                    await self._revoke_on_drift(state)
        return tuple(
            replace(
                row,
                note=PredictionNote(
                    entry.id if state is not None else None,
                    entry.asked,
                    options_in_set(grant.quantile, row.prediction),
                ),
            )
            for entry, row in zip(entries, decided, strict=True)
        )

    async def feedback(self, adapter_id: str, labels: Sequence[tuple[str, str]]) -> FeedbackOutcome:
        """Take in labels of logged predictions, as (prediction id, label). The first label of a prediction counts.

        Raises `UnknownPredictionError` and `InvalidOptionsError` naming the row, with nothing stored.
        """
        async with self._lock:
            state = await self._get(adapter_id)
            new: dict[str, bool] = {}
            for i, (id, label) in enumerate(labels):
                entry = state.logged.get(id)
                if entry is None:
                    message = f"no prediction {id[:100]!r} is remembered under this calibration"
                    raise UnknownPredictionError(message, f"feedback[{i}].prediction_id")
                if entry.options and option_digests([label])[0] not in entry.options:
                    raise InvalidOptionsError(
                        "the label is not among the input's options", f"feedback[{i}].label"
                    )
                if id not in state.labelled and id not in new:
                    new[id] = text_digest(label) == entry.answer
            asked = {id for id in new if state.logged[id].asked}
            if new:
                room = self._settings.max_calibration - len(state.items)
                counting = set([id for id in new if id in asked][: max(0, room)])
                await self._append(state, labels_record(new, counting))
                await self._revoke_on_drift(state)
            self._metrics.feedback_labels.labels("yes").inc(len(asked))
            self._metrics.feedback_labels.labels("no").inc(len(new) - len(asked))
            self._count_states()
            return FeedbackOutcome(len(new), len(asked), len(labels) - len(new), view_of(state))

    def _entry(self, grant: Grant, id: str, key: str, row: DecidedPrediction, seen: bool) -> Logged:
        threshold, confidence = grant.threshold, row.confidence.value
        certified = isinstance(threshold, Certificate) and confidence >= threshold.threshold
        predictive = row.prediction.predictive
        return Logged(
            id=id,
            key=key,
            confidence=confidence,
            answer=text_digest(predictive.answer),
            options=tuple(option_digests(predictive.options)) if has_options(grant.manifest) else (),
            asked=not seen and is_asked(grant.lineage, id, self._settings.feedback_share),
            gated_at=threshold.target_error if certified and isinstance(threshold, Certificate) else None,
        )

    async def _get(self, adapter_id: str) -> GateState:
        state = await self._find(adapter_id)
        if state is None:
            raise missing_calibration(adapter_id)
        return state

    async def _find(self, adapter_id: str) -> GateState | None:
        """The adapter's state, read if need be. Only while the lock is held."""
        state = self._states.get(adapter_id)
        if state is None:
            state = await asyncio.to_thread(self._read, adapter_id)
            if state is None:
                return None
            self._keep(state)
        self._states.move_to_end(adapter_id)
        return state

    def _read(self, adapter_id: str) -> GateState | None:
        records = self._store.read(adapter_id)
        if records is None:
            return None
        try:
            return GateState.of(records, self._settings.alarm_delta)
        except UnsupportedFormatError as error:
            log.warning("the calibration of %s is ignored: %s", adapter_id, error)
            return None

    def _keep(self, state: GateState) -> None:
        self._states[state.adapter_id] = state
        if len(self._states) > _MOST_STATES:
            self._states.popitem(last=False)
        self._count_states()

    async def _begin(self, adapter_id: str, records: Sequence[Record]) -> GateState:
        await self._write(self._store.begin, adapter_id, records)
        state = GateState.of(records, self._settings.alarm_delta)
        self._keep(state)
        return state

    async def _append(self, state: GateState, record: Record) -> None:
        await self._write(self._store.append, state.adapter_id, record)
        state.apply(record)

    async def _write(self, write: Any, adapter_id: str, what: Any) -> None:
        # Shielded: a client that leaves must not leave journal and memory apart.
        task = asyncio.ensure_future(asyncio.to_thread(write, adapter_id, what))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            self._states.pop(adapter_id, None)  # read again from the journal when next asked for
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
            watches = "risk" if any(alarm.raised for alarm in state.alarms.values()) else "domain"
            self._metrics.drift_alarms.labels(watches).inc()
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


def _thresholds(asked: GateRequest, grant: Grant) -> Thresholds:
    """The thresholds to decide with: the granted one alone, or those that were asked for."""
    if grant.threshold is None:
        return asked.thresholds
    return Thresholds(min_confidence=grant.threshold.threshold)
