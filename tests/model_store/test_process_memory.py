import ctypes
import mmap
import multiprocessing
import platform
from pathlib import Path

import numpy as np
import psutil
import pytest

from model_store.process_memory import available_bytes, return_large_blocks, watch_peak


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
    """100 MB that are written and given back count for the first peak, and for no later one.

    They are mapped by themselves: memory that the process holds already would not count.
    """
    before = watch_peak()()
    first = watch_peak()
    with mmap.mmap(-1, 100_000_000) as block:
        np.frombuffer(block, np.uint8).fill(1)
        assert first() - before > 80_000_000
    assert first() - watch_peak()() > 50_000_000


def _kept_after_freeing(asked: bool) -> int:
    """Return the bytes that a process still has after it freed 32 blocks of 8 MiB.

    It took the blocks in turn with small ones.
    """
    if asked:
        return_large_blocks()
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

    def take(size: int) -> int:
        address: int = libc.malloc(ctypes.c_size_t(size))
        ctypes.memset(address, 1, size)
        return address

    # After this, glibc by itself takes blocks of this size from its heap.
    libc.free(take(8 * 2**20))
    before = psutil.Process().memory_info().rss
    large = []
    for _ in range(32):
        large.append(take(8 * 2**20))
        take(100_000)
    for address in large:
        libc.free(address)
    return int(psutil.Process().memory_info().rss - before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what glibc does")
@pytest.mark.parametrize(("asked", "most", "least"), [(True, 16, 0), (False, 300, 200)])
def test_freed_large_blocks_go_back_to_the_system(asked: bool, most: int, least: int) -> None:
    """Each case runs in a process of its own. By itself glibc keeps the blocks."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        kept = pool.apply(_kept_after_freeing, (asked,))
    assert least <= kept / 2**20 <= most
