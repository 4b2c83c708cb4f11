"""Calibrated gates: what a request does to the state of a question's gate.

The engine calls `GateKeeper.resolve` before any model work; it refuses what cannot be granted and
returns the thresholds to decide with. The engine decides, and calls `log_predictions` before it
returns the predictions.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from abmll.assurance.certificates import Certificate
from abmll.text.tasks import Query
from model_store.errors import JournalChangedError
from service.errors import UnknownPredictionError
from service.gating.held_states import HeldStates
from service.gating.labels import judge_labels
from service.gating.questions import (
    AdapterQuestion,
    WantedQuestion,
    chosen_question,
    digest_of_query,
    questions_of_adapter,
)
from service.gating.records import (
    Admitted,
    CalibratedGate,
    CalibrateRequest,
    CalibrationView,
    FeedbackOutcome,
    GateRequest,
    Label,
    ResolvedGate,
)
from service.gating.rules import (
    admit_examples,
    check_conditions,
    check_extendable,
    conditions_of,
    feedback_warnings,
    has_options,
    labelled_examples,
    missing_calibration,
    options_in_set,
    outcome_of,
    question_named,
    resolved_gate,
    view_of,
)
from service.gating.state import (
    GateState,
    Logged,
    begin_record,
    examples_record,
    is_asked,
    journal_key,
    labels_record,
    option_digests,
    outcome_key,
    prediction_id,
    predictions_record,
    revoked_record,
    text_digest,
)

if TYPE_CHECKING:
    from abmll.prediction.settings import PredictSettings
    from model_store.adapters.contract import CalibrationJournals
    from model_store.adapters.manifest import AdapterManifest
    from service.gating.decisions import DecidedPrediction
    from service.metrics import Metrics
    from service.settings import Settings

log = logging.getLogger(__name__)


class GateKeeper:
    """Calibrates gates, resolves them, and takes feedback. Used from one event loop.

    The caller checks that the adapter exists. What is written is decided anew where other servers
    have written in between (`HeldStates`). `fresh_seconds` is for how long thresholds may be of a
    journal as it was.
    """

    def __init__(
        self,
        settings: Settings,
        store: CalibrationJournals,
        metrics: Metrics,
        fresh_seconds: float = math.inf,
    ) -> None:
        self._settings, self._store, self._metrics = settings, store, metrics
        self._states = HeldStates(store, metrics, settings.alarm_delta, fresh_seconds)

    async def admit(self, request: CalibrateRequest, manifest: AdapterManifest) -> Admitted:
        """Return the examples of `request` that count, and warnings about the others.

        Raises `ServiceError` that names the wrong example.
        """
        question = chosen_question(manifest, request.question)
        given = labelled_examples(request, manifest, question)
        async with self._states.lock:
            key = journal_key(manifest.id, given.digest)
            state = None if request.replace else await self._states.newest(key)
        return admit_examples(given, request, manifest, state, self._settings)

    async def add(
        self,
        request: CalibrateRequest,
        manifest: AdapterManifest,
        admitted: Admitted,
        decided: Sequence[DecidedPrediction],
    ) -> CalibrationView:
        """Add the outcomes of the `admitted` examples, which were predicted as `decided`.

        Raises `ServiceError`.
        """
        conditions = conditions_of(manifest, request.settings, decided[0].confidence.function)
        outcomes = [
            outcome_of(example, row.prediction, row.confidence.value, admitted.digest)
            for example, row in zip(admitted.examples, decided, strict=True)
        ]
        async with self._states.lock:
            key = journal_key(manifest.id, admitted.digest)

            async def step() -> GateState:
                old = await self._states.newest(key)
                if request.replace or old is None:
                    version = old.version + 1 if old is not None else 1
                    record = begin_record(
                        manifest.id,
                        conditions,
                        outcomes,
                        held=request.more_follow,
                        version=version,
                        question=admitted.digest,
                    )
                    return await self._states.begin(key, [record])
                check_extendable(old, conditions)
                # Another call may have added some of them since they were admitted.
                fresh = [outcome for outcome in outcomes if outcome.key not in old.keys]
                await self._states.append(old, examples_record(fresh, held=request.more_follow))
                return old

            state = await self._states.on_top(step)
            self._metrics.calibration_examples.inc(len(outcomes))
            return replace(view_of(state, admitted.question), warnings=admitted.warnings)

    async def views(self, manifest: AdapterManifest, wanted: WantedQuestion = None) -> list[CalibrationView]:
        """Return the calibrations of an adapter's questions, of those that have one, or of one.

        Raises `CalibrationMissingError` where there is none, and `InvalidRequestError` where there
        is no such question.
        """
        async with self._states.lock:
            if wanted is not None:
                question = chosen_question(manifest, wanted)
                key = journal_key(manifest.id, question.digest if question else "")
                await self._states.newest(key)
                state = await self._states.get(key)
                return [view_of(state, question)]
            return [view_of(state, question) for question, state in await self._of_adapter(manifest)]

    async def forget(self, adapter_id: str) -> bool:
        """Delete all calibrations of an adapter and their feedback; return whether there were any."""
        async with self._states.lock:
            self._states.forget_of(adapter_id)
            return await asyncio.to_thread(self._store.delete_of, adapter_id)

    async def forget_question(self, manifest: AdapterManifest, wanted: WantedQuestion) -> bool:
        """Delete the calibration of one question; return whether there was one.

        Raises `InvalidRequestError` where there is no such question.
        """
        question = chosen_question(manifest, wanted)
        key = journal_key(manifest.id, question.digest if question else "")
        async with self._states.lock:
            self._states.forget(key)
            return await asyncio.to_thread(self._store.delete, key)

    async def resolve(
        self,
        request: GateRequest,
        manifest: AdapterManifest,
        settings: PredictSettings,
        queries: Sequence[Query],
    ) -> list[ResolvedGate]:
        """Return the gate of each query, for predictions with `settings` by the adapter of
        `manifest`.

        Raises `CalibrationMissingError`, `CalibrationMismatchError`, `CannotCertifyError`,
        `CertificateRevokedError`, and `InvalidRequestError` for a prediction set without options;
        they name the first question that has no such gate.
        """
        if not request.needs_calibration:
            return [ResolvedGate(request.thresholds)] * len(queries)
        found: dict[str, ResolvedGate] = {}
        digests = [digest_of_query(query, manifest) for query in queries]
        async with self._states.lock:
            for number, (query, question) in enumerate(zip(queries, digests, strict=True)):
                if question not in found:
                    with question_named(query, number):
                        state = await self._states.get(journal_key(manifest.id, question))
                        found[question] = resolved_gate(state, request, manifest, settings)
        return [found[question] for question in digests]

    async def log_predictions(
        self,
        gates: Sequence[ResolvedGate],
        queries: Sequence[Query],
        settings: PredictSettings,
        decided: Sequence[DecidedPrediction],
    ) -> Sequence[DecidedPrediction]:
        """Log predictions of calibrated gates; return them with their ids and prediction sets.

        Return predictions of other gates as they are. Raises `CalibrationMismatchError` and
        `StoreFailedError`.
        """
        by_question: dict[str, tuple[CalibratedGate, list[int]]] = {}
        for number, gate in enumerate(gates):
            if (calibrated := gate.calibrated) is not None:
                by_question.setdefault(calibrated.question, (calibrated, []))[1].append(number)
        for calibrated, numbers in by_question.values():
            kind = decided[numbers[0]].confidence.function
            check_conditions(calibrated, conditions_of(calibrated.manifest, settings, kind))
        rows = list(decided)
        async with self._states.lock:
            for calibrated, numbers in by_question.values():
                own = [(queries[number], decided[number]) for number in numbers]
                logged = await self._states.on_top(partial(self._log, calibrated, own))
                for number, row in zip(numbers, logged, strict=True):
                    rows[number] = row
        return rows

    async def _log(
        self, calibrated: CalibratedGate, own: Sequence[tuple[Query, DecidedPrediction]]
    ) -> list[DecidedPrediction]:
        """Log predictions of one question. Needs the lock."""
        state = await self._states.find(journal_key(calibrated.manifest.id, calibrated.question))
        if state is not None and state.lineage != calibrated.lineage:
            state = None  # another calibration than the gate was resolved with
        entries = []
        for query, row in own:
            asked = query if has_options(calibrated.manifest) else replace(query, options=())
            key = outcome_key(asked, calibrated.question)
            id = prediction_id(calibrated.lineage, key)
            known = state.logged.get(id) if state is not None else None
            seen = calibrated.manifest.support.has_input(query.input) or (
                state is not None and key in state.keys
            )
            entries.append(known or self._entry(calibrated, id, key, row, asked, seen=seen))
        if state is not None:
            fresh = {entry.id: entry for entry in entries if entry.id not in state.logged}
            if fresh:
                state = await self._make_room(state, len(fresh))
                await self._states.append(state, predictions_record(fresh.values()))
                await self._revoke_on_drift(state)
        return [
            replace(
                row,
                prediction_id=entry.id if state is not None else None,
                label_asked=entry.asked,
                options_in_set=options_in_set(calibrated.quantile, row.prediction),
            )
            for entry, (_, row) in zip(entries, own, strict=True)
        ]

    async def feedback(
        self, manifest: AdapterManifest, labels: Sequence[tuple[str, Label]]
    ) -> FeedbackOutcome:
        """Add labels of logged predictions, each a pair of prediction id and label.

        The first label of a prediction stays: alarms have bet on it, and looks of a
        certificate have counted it. The view warns of later ones that contradict it. Raises
        `CalibrationMissingError`; raises `UnknownPredictionError` and `InvalidOptionsError` that
        name the row, with nothing stored.
        """
        async with self._states.lock:
            calibrations = await self._of_adapter(manifest)
            judged = judge_labels(calibrations, labels)
            stored = asked = 0
            views = []
            for number, own in judged.by_calibration.items():
                question, state = calibrations[number]
                done, state = await self._states.on_top(
                    partial(self._add_labels, state.key, state.lineage, own)
                )
                stored, asked = stored + done.stored, asked + done.asked
                against = sum(id in own for id in judged.contradicted)
                warnings = feedback_warnings(against, done.uncounted, self._settings)
                views.append(replace(view_of(state, question), warnings=warnings))
            return FeedbackOutcome(stored, asked, len(labels) - stored, judged.contradicted, tuple(views))

    async def _add_labels(
        self, key: str, lineage: str, labels: Mapping[str, bool]
    ) -> tuple[_Labelled, GateState]:
        """Add labels of a state's predictions, by id; return how many are new. Needs the lock."""
        state = await self._states.get(key)
        if state.lineage != lineage or any(id not in state.logged for id in labels):
            raise UnknownPredictionError("the calibration was begun anew meanwhile", "labels")
        new = {id: correct for id, correct in labels.items() if id not in state.labelled}
        asked = {id for id in new if state.logged[id].asked}
        room = max(0, self._settings.max_calibration - len(state.items))
        counting = set([id for id in new if id in asked][:room])
        if new:
            await self._states.append(state, labels_record(new, counting))
            await self._revoke_on_drift(state)
        self._metrics.feedback_labels.labels("yes").inc(len(asked))
        self._metrics.feedback_labels.labels("no").inc(len(new) - len(asked))
        return _Labelled(len(new), len(asked), len(asked - counting)), state

    def _entry(
        self,
        calibrated: CalibratedGate,
        id: str,
        key: str,
        row: DecidedPrediction,
        asked: Query,
        *,
        seen: bool,
    ) -> Logged:
        threshold, confidence = calibrated.threshold, row.confidence.value
        gated_at = None
        if isinstance(threshold, Certificate) and confidence >= threshold.threshold:
            gated_at = threshold.target_error
        return Logged(
            id=id,
            key=key,
            confidence=confidence,
            answer=text_digest(row.prediction.predictive.answer),
            options=tuple(option_digests(asked.options)),
            asked=not seen and is_asked(calibrated.lineage, id, self._settings.feedback_share),
            gated_at=gated_at,
        )

    async def _of_adapter(self, manifest: AdapterManifest) -> list[tuple[AdapterQuestion | None, GateState]]:
        """Return the questions of an adapter that have a calibration, with its state. Needs the
        lock.

        Raises `CalibrationMissingError` where none has.
        """
        questions: Sequence[AdapterQuestion | None] = questions_of_adapter(manifest) or [None]
        found = []
        for question in questions:
            state = await self._states.newest(journal_key(manifest.id, question.digest if question else ""))
            if state is not None:
                found.append((question, state))
        if not found:
            raise missing_calibration(manifest.id)
        return found

    async def _revoke_on_drift(self, state: GateState) -> None:
        reason = state.drift() if state.revoked is None else None
        if reason is not None:
            log.warning("the certificates of %s are revoked: %s", state.key, reason)
            kind = "risk" if any(alarm.raised for alarm in state.alarms.values()) else "domain"
            self._metrics.drift_alarms.labels(kind).inc()
            # A server that has written in between has seen the same reason.
            with suppress(JournalChangedError):
                await self._states.append(state, revoked_record(reason))

    async def _make_room(self, state: GateState, incoming: int) -> GateState:
        most = self._settings.max_logged
        if not state.logged or len(state.logged) + incoming <= most:
            return state
        return await self._states.begin(state.key, state.shortened(min(most // 2, max(0, most - incoming))))


@dataclass(frozen=True)
class _Labelled:
    """Numbers of labels that are new, that were asked for, and of these that found no room."""

    stored: int
    asked: int
    uncounted: int
