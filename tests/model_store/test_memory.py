from pathlib import Path

import psutil
import pytest

from model_store.memory import available_bytes


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
