"""How much memory this process may still take."""

from __future__ import annotations

from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(cgroup: Path = _CGROUP) -> int:
    """What the machine has available, or what is left of the container's limit where that is less."""
    machine: int = psutil.virtual_memory().available
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        rows = (line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        droppable = sum(int(value) for name, value in rows if name == "inactive_file")
    except (OSError, ValueError):  # no container, no version-2 control group, or the limit is "max"
        return machine
    return min(machine, limit - used + droppable)
