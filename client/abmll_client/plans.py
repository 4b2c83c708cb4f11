"""Work of several requests, as generators: they yield a `Call`, get its answer, return a result.

The blocking and the asynchronous client run the same plans, each with its own way of sending.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

from abmll_client import calls, models
from abmll_client.affinity import affinity_of
from abmll_client.arguments import (
    AdaptFields,
    InputsLike,
    SupportLike,
    TeachFields,
    input_rows,
    labelled_rows,
    text_rows,
)
from abmll_client.calls import Call
from abmll_client.errors import NotAdaptedError
from abmll_client.questions import CasesLike, QuestionLike, question_rows

RowT = TypeVar("RowT", bound=str | Mapping[str, Any])
ResultT = TypeVar("ResultT")
Plan: TypeAlias = Generator[Call[Any], Any, ResultT]

POLL_SECONDS = 20.0
"""Longest time of a request that waits for an adapter; proxies cut connections after 30 s and more.
"""
_FRAMING_BYTES = 64  # the name and the brackets of `inputs`


def create_adapter(
    create: Call[models.CreateAdapterResponse],
    wait_seconds: float,
    on_progress: Callable[[models.AdapterProgress], object] | None = None,
) -> Plan[models.CreateAdapterResponse]:
    """Make the adapter of the call `create` in requests that take `POLL_SECONDS` at most.

    `on_progress` is called with how far it is. Raises `NotAdaptedError`, also after `wait_seconds`.
    """
    until = time.monotonic() + wait_seconds
    begin = _without_waiting(create)
    answer = yield begin
    while isinstance(answer, models.AdapterProgress):
        if on_progress is not None:
            on_progress(answer)
        if answer.status == "succeeded":
            answer = yield begin
            continue
        if answer.error is not None:
            raise NotAdaptedError(answer.id, answer.status, answer.error.code, answer.error.message)
        if time.monotonic() >= until:
            message = f"not done in {wait_seconds:g} s, it goes on"
            raise NotAdaptedError(answer.id, answer.status, None, message)
        # To the server that makes it: only that one knows how far it is.
        poll = calls.progress(answer.id, _wait_ms(until))
        answer = yield replace(poll, affinity=affinity_of(create.path, create.body))
    made: models.CreateAdapterResponse = answer
    return made


def begin_adapter(create: Call[models.CreateAdapterResponse]) -> Plan[models.AdapterProgress]:
    """Begin to make the adapter of the call `create`, without waiting, and get how far it is."""
    answer = yield _without_waiting(create)
    if not isinstance(answer, models.AdapterProgress):  # it was there already
        answer = yield replace(calls.progress(answer.id), affinity=affinity_of(create.path, create.body))
    begun: models.AdapterProgress = answer
    return begun


def _without_waiting(create: Call[models.CreateAdapterResponse]) -> Call[models.CreateAdapterResponse]:
    return replace(create, query={"wait_ms": 0}, accepted=models.AdapterProgress)


def _wait_ms(until: float) -> int:
    return int(1000 * min(POLL_SECONDS, max(0.0, until - time.monotonic())))


def predict_all(inputs: InputsLike, **fields: Any) -> Plan[list[models.Prediction]]:
    """Answer any number of `inputs`, in as many requests as the server's limits ask for.

    `fields` are `PredictFields`. With `support`, the adapter is made first, and the inputs are
    answered with it.
    """
    rows = input_rows(inputs)
    if not rows:
        return []
    if fields.get("support") is not None:
        adapting = {name: fields[name] for name in AdaptFields.__annotations__ if name in fields}
        made: models.CreateAdapterResponse = yield calls.create_adapter(fields["support"], **adapting)
        fields |= {"support": None, "adapt": None, "adapter_id": made.id}
    limits: models.LimitsReport = yield calls.limits()
    most_bytes = limits.max_body_bytes - _json_bytes(fields) - _FRAMING_BYTES
    predictions: list[models.Prediction] = []
    for batch in batches(rows, limits.max_inputs, most_bytes):
        answer: models.PredictResponse = yield calls.predict(batch, **fields)
        first = len(predictions)
        predictions += [p.model_copy(update={"index": first + p.index}) for p in answer.predictions]
        if answer.model is not None:  # all inputs are answered by one version of the name
            fields["model"] = answer.model
    return predictions


def decide_all(
    inputs: Iterable[str],
    questions: Iterable[QuestionLike] | None = None,
    cases: CasesLike | None = None,
    **fields: Any,
) -> Plan[list[models.DecidedInput]]:
    """Answer `questions` about any number of `inputs`, in as many requests as limits ask for.

    `fields` are `DecideFields`. With `cases`, the adapter is made first.
    """
    rows = text_rows(inputs)
    asked = None if questions is None else question_rows(questions)
    if not rows:
        return []
    if cases is not None:
        adapting = {name: fields[name] for name in TeachFields.__annotations__ if name in fields}
        made: models.CreateAdapterResponse = yield calls.create_adapter(None, asked, cases, **adapting)
        fields |= {"model": None, "adapt": None, "adapter_id": made.id}
    limits: models.LimitsReport = yield calls.limits()
    most_bytes = limits.max_body_bytes - _json_bytes(fields) - _json_bytes(asked) - 2 * _FRAMING_BYTES
    results: list[models.DecidedInput] = []
    for batch in batches(rows, limits.max_inputs, most_bytes):
        answer: models.DecideResponse = yield calls.decide(batch, asked, **fields)
        first = len(results)
        results += [row.model_copy(update={"index": first + row.index}) for row in answer.results]
        if fields.get("model") is not None:  # all inputs are answered by one version of the name
            fields["model"] = answer.model
    return results


def calibrate(
    adapter_id: str, examples: SupportLike, *, replace: bool = False, **fields: Any
) -> Plan[models.Calibration]:
    """Calibrate on any number of `examples`, which are one look at the labels in several requests.

    `fields` are `CalibrateFields`; `replace` forgets the calibration that is there.
    """
    limits: models.LimitsReport = yield calls.limits()
    most_bytes = limits.max_body_bytes - _json_bytes(fields) - 2 * _FRAMING_BYTES
    parts = list(batches(labelled_rows(examples), limits.max_inputs, most_bytes)) or [[]]
    for number, part in enumerate(parts, 1):
        calibration: models.Calibration = yield calls.calibrate(
            adapter_id, part, replace=replace and number == 1, more_follow=number < len(parts), **fields
        )
    return calibration


def batches(rows: Sequence[RowT], most_rows: int, most_bytes: int) -> Iterator[list[RowT]]:
    """Cut `rows`, in their order, so that each piece keeps to both limits.

    A row that is larger than `most_bytes` is a piece of its own.
    """
    batch: list[RowT] = []
    used = 0
    for row in rows:
        size = _json_bytes(row) + 2
        if batch and (len(batch) == most_rows or used + size > most_bytes):
            yield batch
            batch, used = [], 0
        batch.append(row)
        used += size
    if batch:
        yield batch


def _json_bytes(value: Any) -> int:
    """Bytes of `value` as JSON, or a little more: what is not ASCII counts as its escape."""
    return len(json.dumps(value))
