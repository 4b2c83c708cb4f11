"""The journals of gates: what the calibration of each question of an adapter is read from.

The key of a journal is the id of its adapter, or that with a point and the digest of a question
behind it.
"""

from __future__ import annotations

import re
from pathlib import Path

from model_store.adapters.contract import RecordJournals
from model_store.adapters.journals import Journals
from model_store.adapters.manifest import ADAPTER_ID
from model_store.adapters.shared_journals import SharedJournals
from model_store.objects.contract import Objects

FOLDER = "calibrations"
# An adapter's id, and the digest of the question where the adapter has instructions.
_KEY = re.compile(rf"{ADAPTER_ID.pattern}(\.[0-9a-f]{{16}})?")
_WHAT = "calibration"


class _OfAdapters(RecordJournals):
    """What journals of gates are besides journals."""

    def of_adapter(self, adapter_id: str) -> list[str]:
        """Return the keys of an adapter's journals. `adapter_id` may be any text."""
        if not ADAPTER_ID.fullmatch(adapter_id):
            return []
        return [key for key in self.keys() if key.partition(".")[0] == adapter_id]

    def delete_of(self, adapter_id: str) -> bool:
        """Remove an adapter's journals durably, and return whether there were any."""
        deleted = [self.delete(key) for key in self.of_adapter(adapter_id)]
        return any(deleted)


class GateJournals(Journals, _OfAdapters):
    """Owns the journals of calibrations below `root`; threads may share it."""

    def __init__(self, root: Path) -> None:
        """Use `root`, as `Journals`. Raises `UnusableFolderError`."""
        super().__init__(root, _KEY, _WHAT)


class SharedGateJournals(SharedJournals, _OfAdapters):
    """The journals of calibrations among objects; many processes may use them."""

    def __init__(self, objects: Objects) -> None:
        """Use `objects`, as `SharedJournals`."""
        super().__init__(objects, FOLDER, _KEY, _WHAT)
