"""The journals of gates: what the calibration of each adapter is read from."""

from __future__ import annotations

from pathlib import Path

from model_store.adapters.journals import Journals
from model_store.adapters.manifest import ADAPTER_ID


class GateJournals(Journals):
    """Owns the journals of calibrations below `root`, by adapter id; threads may share it."""

    def __init__(self, root: Path) -> None:
        """Use `root`, as `Journals`. Raises `UnusableFolderError`."""
        super().__init__(root, ADAPTER_ID, "calibration")
