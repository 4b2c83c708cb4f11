from pathlib import Path

import numpy as np
import psutil
import pytest

from model_store.memory import available_bytes, watch_peak


def test_a_container_may_take_what_its_limit_leaves_and_can_drop(tmp_path: Path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\nactive_file 50\n")
    assert available_bytes(tmp_path) == 1000 - 700 + 150


@pytest.mark.parametrize("limit", [None, "max\n"])
def test_without_a_limit_the_machine_counts(tmp_path: Path, limit, monkeypatch):
    if limit:
        (tmp_path / "memory.max").write_text(limit)
    machine = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    assert available_bytes(tmp_path) == machine.available


def test_the_peak_is_that_since_the_watch_began() -> None:
    """100 MB that are touched and given back count for the watch that saw them, and for no later one."""
    before = watch_peak()()
    first = watch_peak()
    block = np.ones(100_000_000, np.uint8)
    assert block.sum() > 0
    assert first() - before > 80_000_000
    del block
    assert first() - watch_peak()() > 50_000_000
