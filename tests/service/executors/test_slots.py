"""Slots: leases, reuse and copies."""

import pytest
import torch

from abmll.decoder.layout import Site
from abmll.posterior.config import TemperatureRule
from abmll.posterior.posteriors import TaskPosterior
from service.executors.slots import SlotsFullError, SlotTable
from tests.tiny import make_config


def adapter(number: float) -> TaskPosterior:
    """Return an adapter with four values."""
    config = make_config(rank=1, temperature=TemperatureRule(number))
    return TaskPosterior(config, (Site(0, "q", 1, 1),), torch.full((4,), number))


def table(count: int = 2) -> SlotTable:
    return SlotTable(count, 4, torch.device("cpu"))


def test_an_adapter_is_copied_once_and_then_found_by_its_id() -> None:
    slots, given = table(), adapter(1)
    first = slots.acquire("a", given)
    given.values.fill_(7)  # the slot holds a copy
    assert slots.acquire("a", None) is first
    assert torch.equal(first.values, adapter(1).values)
    assert first.config == given.config
    assert "a" in slots
    with pytest.raises(KeyError):
        slots.acquire("b", None)


def test_the_least_recently_used_adapter_without_a_lease_makes_room() -> None:
    slots = table()
    slots.acquire("a", adapter(1))
    slots.acquire("b", adapter(2))
    slots.release("a")
    slots.release("b")
    slots.acquire("a", None)
    slots.release("a")
    slots.acquire("c", adapter(3))
    assert slots.ids == ("a", "c")
    assert slots.used_bytes == 2 * 4 * 4


def test_what_is_leased_is_never_evicted() -> None:
    slots = table()
    slots.acquire("a", adapter(1))
    slots.acquire("a", None)
    slots.acquire("b", adapter(2))
    slots.release("a")
    with pytest.raises(SlotsFullError):
        slots.acquire("c", adapter(3))
    slots.release("a")
    assert torch.equal(slots.acquire("c", adapter(3)).values, adapter(3).values)
    assert slots.ids == ("b", "c")


def test_an_adapter_without_values_takes_no_memory_of_the_device() -> None:
    slots = table(1)
    assert not slots.acquire("a", adapter(1).without_values()).has_values
    assert slots.used_bytes == 0
    slots.release("a")
    assert torch.equal(slots.acquire("b", adapter(2)).values, adapter(2).values)
    slots.release("b")
    assert slots.acquire("a", adapter(1).without_values()).config == adapter(1).config
    assert slots.ids == ("a",)
