"""Memory of this process: what is available, the peak, and giving back freed blocks."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")
# M_MMAP_THRESHOLD of <malloc.h>, and the size in bytes from which a block is mapped by itself.
_M_MMAP_THRESHOLD, _LARGE = -3, 4 * 2**20


def available_bytes(cgroup: Path = _CGROUP) -> int:
    """Return the bytes that are available to this process.

    These are the machine's, or what is left of the container's limit where that is less.
    """
    machine: int = psutil.virtual_memory().available
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        rows = (line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        droppable = sum(int(value) for name, value in rows if name == "inactive_file")
    except (OSError, ValueError):  # no control group of version 2, or the limit is "max"
        return machine
    return min(machine, limit - used + droppable)


def return_large_blocks() -> None:
    """Have the C library give freed blocks of 4 MiB or more back to the system at once.

    This is for glibc; elsewhere it has no effect. By itself glibc raises that limit to the largest
    block that was freed, up to 32 MiB. Activations and adapters then lie between small blocks, and
    the holes that they leave make a process with an 8B-shaped model take 0.3 GiB (6 layers) to 1
    GiB (32 layers) more than is in use. The cost is page faults, too few to measure in the time of
    an adaptation.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)


def watch_peak(device: str = "cpu") -> Callable[[], int]:
    """Start measuring, and return a function that gives the peak in bytes since then.

    It is the peak of this process, or of what torch holds on a GPU. Where the system does not let
    the process reset its high-water mark (not Linux), it is the peak of the whole life of the
    process.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # 5 resets the high-water mark (man 5 proc)
    return _high_water_bytes


def _high_water_bytes() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
