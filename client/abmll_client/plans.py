"""Work of several requests, as generators: they yield a `Call`, are sent its answer, and return their result.

So the blocking and the asynchronous client run the same plan, each in its own way.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from abmll_client import calls
from abmll_client.calls import AdaptFields, Call, InputsLike, SupportLike
from service import schemas

RowT = TypeVar("RowT", bound=str | Mapping[str, Any])
ResultT = TypeVar("ResultT")
Plan: TypeAlias = Generator[Call[Any], Any, ResultT]

_FRAMING_BYTES = 64  # the name and the brackets of `inputs`


def predict_all(inputs: InputsLike, **fields: Any) -> Plan[list[schemas.Prediction]]:
    """The predictions of any number of `inputs`, in as many requests as the server's limits ask for.

    `fields` are `PredictFields`. With `support`, the adapter is made first, and the inputs are answered with it.
    """
    rows = calls.listed(inputs)
    if not rows:
        return []
    if fields.get("support") is not None:
        adapting = {name: fields[name] for name in AdaptFields.__annotations__ if name in fields}
        made: schemas.CreateAdapterResponse = yield calls.create_adapter(fields["support"], **adapting)
        fields |= {"support": None, "adapt": None, "adapter_id": made.id}
    limits: schemas.LimitsReport = yield calls.limits()
    room = limits.max_body_bytes - _bytes(fields) - _FRAMING_BYTES
    predictions: list[schemas.Prediction] = []
    for batch in batches(rows, limits.max_inputs, room):
        answer: schemas.PredictResponse = yield calls.predict(batch, **fields)
        first = len(predictions)
        predictions += [p.model_copy(update={"index": first + p.index}) for p in answer.predictions]
    return predictions


def calibrate(
    adapter_id: str, examples: SupportLike, *, replace: bool = False, **fields: Any
) -> Plan[schemas.Calibration]:
    """The calibration after any number of `examples`, which count as one look at the labels however many requests they take.

    `fields` are `CalibrateFields`; `replace` begins anew.
    """
    limits: schemas.LimitsReport = yield calls.limits()
    room = limits.max_body_bytes - _bytes(fields) - 2 * _FRAMING_BYTES
    parts = list(batches(calls.labelled(examples), limits.max_inputs, room)) or [[]]
    for number, part in enumerate(parts, 1):
        found: schemas.Calibration = yield calls.calibrate(
            adapter_id, part, replace=replace and number == 1, more_follow=number < len(parts), **fields
        )
    return found


def batches(rows: Sequence[RowT], most_rows: int, most_bytes: int) -> Iterator[list[RowT]]:
    """`rows` in their order, cut so that each piece keeps to both limits; a row that is too large is a piece of its own."""
    batch: list[RowT] = []
    used = 0
    for row in rows:
        size = _bytes(row) + 2
        if batch and (len(batch) == most_rows or used + size > most_bytes):
            yield batch
            batch, used = [], 0
        batch.append(row)
        used += size
    if batch:
        yield batch


def _bytes(value: Any) -> int:
    """Of `value` as JSON, or a little more: what is not ASCII counts as its escape."""
    return len(json.dumps(value))
