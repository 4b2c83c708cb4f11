"""The journals of gates: what the calibration of each question of an adapter is read from."""

from __future__ import annotations

import re
from pathlib import Path

from model_store.adapters.journals import Journals
from model_store.adapters.manifest import ADAPTER_ID

# An adapter's id, and the digest of the question where the adapter has instructions.
_KEY = re.compile(rf"{ADAPTER_ID.pattern}(\.[0-9a-f]{{16}})?")


class GateJournals(Journals):
    """Owns the journals of calibrations below `root`; threads may share it.

    The key of a journal is the id of its adapter, or that with a point and the digest of a question
    behind it.
    """

    def __init__(self, root: Path) -> None:
        """Use `root`, as `Journals`. Raises `UnusableFolderError`."""
        super().__init__(root, _KEY, "calibration")

    def of_adapter(self, adapter_id: str) -> list[str]:
        """Return the keys of an adapter's journals. `adapter_id` may be any text."""
        if not ADAPTER_ID.fullmatch(adapter_id):
            return []
        return [key for key in self.keys() if key.partition(".")[0] == adapter_id]

    def delete_of(self, adapter_id: str) -> bool:
        """Remove an adapter's journals durably, and return whether there were any."""
        deleted = [self.delete(key) for key in self.of_adapter(adapter_id)]
        return any(deleted)
