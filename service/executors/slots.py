"""Adapters on a worker's device: slots of one stacked tensor, so that a batch picks its adapters by index."""

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
    """`count` slots of P values in fp32 on `device`. Used from one thread.

    `acquire` leases a slot until `release`; what is leased is never evicted, of the rest the least recently used goes first.
    Memory is taken slot by slot, as adapters come, up to `count`.
    """

    def __init__(self, count: int, size: int, device: torch.device) -> None:
        self._count, self._size, self._device = count, size, device
        self._slots: OrderedDict[str, TaskPosterior] = OrderedDict()
        self._leases: Counter[str] = Counter()

    def __contains__(self, adapter_id: str) -> bool:
        return adapter_id in self._slots

    @property
    def ids(self) -> Sequence[str]:
        """Adapters that are here."""
        return tuple(self._slots)

    @property
    def used_bytes(self) -> int:
        """Bytes of the adapters that are here: P values each on the device, and class examples on the host."""
        return sum(posterior.nbytes for posterior in self._slots.values())

    def acquire(self, adapter_id: str, posterior: TaskPosterior | None) -> TaskPosterior:
        """Lease the adapter, its values [P] on the device: copied from `posterior` on the host where they are not here yet.

        Raises `KeyError` where it is neither here nor given, `SlotsFullError` where every slot is leased.
        """
        if adapter_id not in self._slots:
            if posterior is None:
                raise KeyError(adapter_id)
            values = self._free_slot().copy_(self._pinned(posterior.values), non_blocking=True)
            self._slots[adapter_id] = replace(posterior, values=values)
        self._slots.move_to_end(adapter_id)
        self._leases[adapter_id] += 1
        return self._slots[adapter_id]

    def release(self, adapter_id: str) -> None:
        """Give a lease back."""
        self._leases[adapter_id] -= 1
        if not self._leases[adapter_id]:
            del self._leases[adapter_id]

    def _free_slot(self) -> Tensor:
        if len(self._slots) < self._count:
            return torch.empty(self._size, device=self._device)
        idle = next((adapter_id for adapter_id in self._slots if adapter_id not in self._leases), None)
        if idle is None:
            raise SlotsFullError("every adapter slot is in use")
        return self._slots.pop(idle).values

    def _pinned(self, values: Tensor) -> Tensor:
        """Host memory that a GPU copies from without stopping."""
        return values.pin_memory() if self._device.type == "cuda" else values
