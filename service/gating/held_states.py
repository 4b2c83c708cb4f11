"""The states of gates in memory, in front of their journals."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from model_store.adapters.contract import ABSENT, Mark
from model_store.errors import (
    CorruptArtifactError,
    JournalChangedError,
    StoreError,
    UnsupportedFormatError,
)
from service.errors import StoreUnavailableError, store_failure
from service.gating.rules import missing_calibration
from service.gating.state import GateState, read_state

if TYPE_CHECKING:
    from model_store.adapters.contract import CalibrationJournals, Record
    from service.metrics import Metrics

log = logging.getLogger(__name__)

_MOST_STATES = 256
_MOST_TRIES = 20
T = TypeVar("T")


class HeldStates:
    """Owns the states of gates that are in memory, and writes their journals.

    Used from one event loop. All methods need the `lock`, which callers hold while journal and
    memory change together. The disk is written in threads, and always before memory. Where other
    servers write the same journals, a write happens only on top of all that they have written.
    `fresh_seconds` is for how long a state may be of a journal as it was.
    """

    def __init__(
        self, store: CalibrationJournals, metrics: Metrics, alarm_delta: float, fresh_seconds: float
    ) -> None:
        self.lock = asyncio.Lock()
        self._store, self._metrics, self._alarm_delta = store, metrics, alarm_delta
        self._fresh_seconds = fresh_seconds
        self._states: OrderedDict[str, GateState] = OrderedDict()
        self._read_to: dict[str, tuple[Mark, float]] = {}  # how far, and when in the event loop's time
        self._counted: Counter[str] = Counter()

    async def get(self, key: str) -> GateState:
        """Return as `find`. Raises `CalibrationMissingError` where there is no state."""
        state = await self.find(key)
        if state is None:
            raise missing_calibration(key.partition(".")[0])
        return state

    async def find(self, key: str) -> GateState | None:
        """Return the state of a journal, read from it if it may have changed."""
        state = self._states.get(key)
        read_to, read_at = self._read_to.get(key, (ABSENT, -math.inf))
        now = asyncio.get_running_loop().time()
        if state is None or now - read_at >= self._fresh_seconds:
            known = ABSENT if state is None else read_to
            state, read_to = await asyncio.to_thread(self._read, key, state, known)
            if state is None:
                self.forget(key)
                return None
            self._hold(state, read_to, now)
        self._states.move_to_end(key)
        return state

    async def newest(self, key: str) -> GateState | None:
        """Return the state of a journal with all that other servers have written."""
        self._look_again(key)
        return await self.find(key)

    async def on_top(self, step: Callable[[], Awaitable[T]]) -> T:
        """Run `step`, and again while other servers write in between.

        `step` finds a state, and writes what follows from it once. Raises `StoreUnavailableError`
        where others always write first.
        """
        for _ in range(_MOST_TRIES):
            try:
                return await step()
            except JournalChangedError:
                continue
        raise StoreUnavailableError("other servers change the calibration all the time: nothing is stored")

    async def begin(self, key: str, records: Sequence[Record]) -> GateState:
        """Write a journal of `records`, in place of the one that is there, and return its state.

        Raises `JournalChangedError`, `StoreFailedError` and its kinds.
        """
        mark = await self._write(lambda known: self._store.begin(key, records, known), key)
        state = GateState.of(records, self._alarm_delta)
        self._hold(state, mark, asyncio.get_running_loop().time())
        return state

    async def append(self, state: GateState, record: Record) -> None:
        """Add `record` to the journal of `state`, then to `state`. Raises as `begin`."""
        mark = await self._write(lambda known: self._store.append(state.key, record, known), state.key)
        state.apply(record)
        self._hold(state, mark, asyncio.get_running_loop().time())

    def forget(self, key: str) -> None:
        """Drop a state from memory: the next look is at its journal."""
        self._states.pop(key, None)
        self._read_to.pop(key, None)
        self._count()

    def forget_of(self, adapter_id: str) -> None:
        """Drop the states of an adapter from memory."""
        for key in [key for key, state in self._states.items() if state.adapter_id == adapter_id]:
            self.forget(key)

    def _read(self, key: str, state: GateState | None, read_to: Mark) -> tuple[GateState | None, Mark]:
        """Return the state with what is in the journal behind `read_to`, or a new one."""
        loaded = self._store.load(key, read_to)
        if loaded is None:
            return None, ABSENT
        try:
            if state is None or loaded.anew:
                return read_state(key, loaded.records, self._alarm_delta), loaded.mark
            for record in loaded.records:
                state.apply(record)
        except CorruptArtifactError as error:
            self._store.move_aside(key, error)
            return None, ABSENT
        except UnsupportedFormatError as error:
            log.warning("the calibration of %s is ignored: %s", key, error)
            return None, ABSENT
        return state, loaded.mark

    def _hold(self, state: GateState, read_to: Mark, read_at: float) -> None:
        self._states[state.key], self._read_to[state.key] = state, (read_to, read_at)
        if len(self._states) > _MOST_STATES:
            self._read_to.pop(self._states.popitem(last=False)[0], None)
        self._count()

    def _look_again(self, key: str) -> None:
        """Have the next `find` look at the journal, unless no other server writes it."""
        if key in self._read_to and self._fresh_seconds < math.inf:
            self._read_to[key] = (self._read_to[key][0], -math.inf)

    async def _write(self, write: Callable[[Mark], Mark], key: str) -> Mark:
        """Run `write` with the mark up to which the journal was read, and return its new mark."""
        known = self._read_to[key][0] if key in self._states else ABSENT
        # Shielded, so that journal and memory stay equal when a client leaves during the write.
        task = asyncio.ensure_future(asyncio.to_thread(write, known))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            self.forget(key)  # the next request reads it from the journal
            raise
        except JournalChangedError:
            self._look_again(key)
            raise
        except (OSError, StoreError) as error:
            self._look_again(key)  # a shared store may have written it all the same
            log.exception("the calibration of %s could not be stored", key)
            raise store_failure(
                error, "the calibration could not be stored, so nothing is acknowledged"
            ) from error

    def _count(self) -> None:
        counts = Counter("active" if state.revoked is None else "revoked" for state in self._states.values())
        for name in ("active", "revoked"):  # other tenants have keepers of their own, and add to it
            self._metrics.calibrations.labels(name).inc(counts[name] - self._counted[name])
        self._counted = counts
