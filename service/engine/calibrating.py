"""Calibrations of a tenant's adapters: labelled answers are added, shown and deleted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.engine.answers import Answered
from service.engine.decisions import placed_in_examples
from service.engine.requests import PredictRequest
from service.engine.tenants import Belongings
from service.errors import ServiceError
from service.gating.records import CalibrateRequest, CalibrationView, FeedbackOutcome, Label
from service.gating.rules import missing_calibration
from service.principals.audit import Action

if TYPE_CHECKING:
    from service.gating.questions import WantedQuestion


@dataclass(frozen=True)
class Calibrating:
    """Calibrates the gates of a tenant's adapters. It has no state of its own."""

    _own: Belongings
    _predict: Callable[[PredictRequest], Awaitable[Answered]]
    _audit: Callable[[Action, str, str], None]

    async def add(self, request: CalibrateRequest) -> CalibrationView:
        """Predict labelled examples, and add their outcomes to the adapter's calibration.

        Examples that are in the support or in the calibration already are left out with a warning.
        Raises `ServiceError`.
        """
        registry, gates = self._own.registry, self._own.gates
        manifest = (await registry.get(request.adapter_id)).manifest
        admitted = await gates.admit(request, manifest)
        queries = tuple(example.query for example in admitted.examples)
        work = PredictRequest(request.adapter_id, queries, request.settings, truncate=request.truncate)
        try:
            answered = await self._predict(work)
        except ServiceError as error:
            raise placed_in_examples(error, admitted.places) from error
        async with registry.existing(request.adapter_id):  # its calibration must not outlive it
            view = await gates.add(request, manifest, admitted, answered.predictions)
        self._audit("gate", request.adapter_id, "calibrate")
        return view

    async def views(self, adapter_id: str, question: WantedQuestion = None) -> Sequence[CalibrationView]:
        """Return the calibrations of the adapter's questions, or of one of them.

        Raises `UnknownAdapterError`, `CalibrationMissingError` where there is none, and
        `InvalidRequestError` for an unknown question.
        """
        manifest = (await self._own.registry.get(adapter_id)).manifest
        async with self._own.registry.existing(adapter_id):  # not while it is deleted, which takes two steps
            return await self._own.gates.views(manifest, question)

    async def delete(self, adapter_id: str, question: WantedQuestion = None) -> None:
        """Delete the calibration of a question and its feedback, or without `question` all of them.

        Raises as `views`.
        """
        manifest = (await self._own.registry.get(adapter_id)).manifest
        async with self._own.registry.existing(adapter_id):
            if question is None:
                deleted = await self._own.gates.forget(adapter_id)
            else:
                deleted = await self._own.gates.forget_question(manifest, question)
            if not deleted:
                raise missing_calibration(adapter_id)
        self._audit("gate", adapter_id, "delete")

    async def label(self, adapter_id: str, labels: Sequence[tuple[str, Label]]) -> FeedbackOutcome:
        """Add labels of logged predictions, each a pair of prediction id and label.

        Raises `UnknownAdapterError`, and as `GateKeeper.feedback`.
        """
        manifest = (await self._own.registry.get(adapter_id)).manifest
        return await self._own.gates.feedback(manifest, labels)
