"""The memory that this process uses, on the host and on GPUs."""

from __future__ import annotations

import sys

import psutil


def resident_bytes() -> int:
    """Return the bytes of this process that are in main memory."""
    return int(psutil.Process().memory_info().rss)


def gpu_bytes() -> int | None:
    """Return the bytes of GPU memory that this process has reserved; None where it uses no GPU."""
    torch = sys.modules.get("torch")  # not imported for this
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(sum(torch.cuda.memory_reserved(device) for device in range(torch.cuda.device_count())))
