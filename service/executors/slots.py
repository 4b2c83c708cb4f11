"""Slots: the places of adapters on a worker's device."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from abmll.posterior.posteriors import TaskPosterior


class SlotsFullError(RuntimeError):
    """Every slot is in use by a run."""


class SlotTable:
    """At most `count` slots of P values in fp32 on `device`. Used from one thread.

    `acquire` leases a slot until `release`. Leased slots are never reused; of the others, the least
    recently used is reused first. Memory is allocated slot by slot, as adapters come.
    """

    def __init__(self, count: int, size: int, device: torch.device) -> None:
        self._count, self._size, self._device = count, size, device
        self._slots: OrderedDict[str, TaskPosterior] = OrderedDict()
        self._leases: Counter[str] = Counter()

    def __contains__(self, adapter_id: str) -> bool:
        return adapter_id in self._slots

    @property
    def ids(self) -> Sequence[str]:
        """Return the ids of the adapters that have a slot."""
        return tuple(self._slots)

    @property
    def used_bytes(self) -> int:
        """Return their bytes: values [P] on the device, class examples on the host."""
        return sum(posterior.nbytes for posterior in self._slots.values())

    def acquire(self, adapter_id: str, posterior: TaskPosterior | None) -> TaskPosterior:
        """Lease the slot of the adapter, and return the adapter with its values [P] on the device.

        An adapter without a slot is copied from `posterior`, on the host. One without values takes
        no memory of the device. Raises `KeyError` where `posterior` is None, and `SlotsFullError`
        where every slot is leased.
        """
        if adapter_id not in self._slots:
            if posterior is None:
                raise KeyError(adapter_id)
            self._slots[adapter_id] = self._copied(posterior, self._make_room())
        self._slots.move_to_end(adapter_id)
        self._leases[adapter_id] += 1
        return self._slots[adapter_id]

    def release(self, adapter_id: str) -> None:
        """End a lease."""
        self._leases[adapter_id] -= 1
        if not self._leases[adapter_id]:
            del self._leases[adapter_id]

    def _make_room(self) -> Tensor | None:
        """Evict an adapter if every slot is taken, and return its values, which may be written over."""
        if len(self._slots) < self._count:
            return None
        idle = next((adapter_id for adapter_id in self._slots if adapter_id not in self._leases), None)
        if idle is None:
            raise SlotsFullError("every adapter slot is in use")
        evicted = self._slots.pop(idle)
        return evicted.values if evicted.has_values else None

    def _copied(self, posterior: TaskPosterior, values: Tensor | None) -> TaskPosterior:
        if not posterior.has_values:
            return posterior
        values = torch.empty(self._size, device=self._device) if values is None else values
        return replace(posterior, values=values.copy_(self._pinned(posterior.values), non_blocking=True))

    def _pinned(self, values: Tensor) -> Tensor:
        """Return the values in pinned memory, from which a GPU copies without waiting."""
        return values.pin_memory() if self._device.type == "cuda" else values
