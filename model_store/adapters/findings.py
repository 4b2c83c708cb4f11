"""What a store finds when it reads all its entries, and what becomes of those that are not intact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from model_store.errors import CorruptArtifactError, UnsupportedFormatError


@dataclass(frozen=True)
class Finding:
    """An entry of a store that cannot be vouched for.

    `moved` says whether it was moved aside; an entry in the format of another version, or one that
    the system does not let us read, stays.
    """

    id: str
    reason: str
    moved: bool


def verify_each(
    ids: Iterable[str],
    read: Callable[[str], object],
    move_aside: Callable[[str, CorruptArtifactError], None],
) -> tuple[int, Sequence[Finding]]:
    """Read every entry; return how many are intact, and what is wrong with the others.

    Damaged ones are moved aside. One that is not intact does not keep the others from being read.
    """
    intact, findings = 0, []
    for id in ids:
        try:
            read(id)
        except CorruptArtifactError as error:
            move_aside(id, error)
            findings.append(Finding(id, str(error), moved=True))
        except UnsupportedFormatError as error:
            findings.append(Finding(id, str(error), moved=False))
        except OSError as error:
            findings.append(Finding(id, f"it cannot be read: {error.strerror}", moved=False))
        else:
            intact += 1
    return intact, findings
