"""The best speed that was measured of a model on a machine, kept on disk from start to start.

A speed that was measured while something else used the processor is too low. Prices by it would
refuse requests that would be done in time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import secrets
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from abmll.work import Speed, Work
from model_store.storage import finite_json

log = logging.getLogger(__name__)


def best_known(folder: Path, key: Hashable, measured: Speed, usual: Work) -> Speed:
    """Return the speed at which the `usual` work takes least: `measured`, or one that was kept.

    The speed is kept in `folder` for the next start. Everything with an equal `key` has one speed; the
    text of a key is the same in all processes. Where `folder` cannot be written, nothing is kept.
    """
    names = [field.name for field in fields(Work)]
    digest = hashlib.sha256(repr((key, names)).encode()).hexdigest()[:32]
    path = folder / f"{digest}.json"
    kept = _read(path, len(names))
    if kept is not None and kept.seconds(usual) <= measured.seconds(usual):
        log.info(
            "this machine is slower than at an earlier start: %.3g s for what took %.3g s. Prices are by that start",
            measured.seconds(usual),
            kept.seconds(usual),
        )
        return kept
    partial = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    with suppress(OSError):  # a read-only cache, or a full disk
        folder.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(json.dumps({"seconds_of": measured.seconds_of}), "utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return measured


def machine(device: str) -> tuple[str, ...]:
    """Return the kind of machine that this process runs on: processor, cores, and `device`."""
    processor = platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        processor = next((line for line in lines if line.startswith("model name")), processor)
    return platform.machine(), processor, str(os.cpu_count()), device


def _read(path: Path, count: int) -> Speed | None:
    try:
        seconds = finite_json(path.read_text("utf-8"))["seconds_of"]
        speed = Speed(tuple(map(float, seconds)))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return speed if len(speed.seconds_of) == count and min(speed.seconds_of) >= 0 else None
