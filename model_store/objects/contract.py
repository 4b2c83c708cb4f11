"""What a shared store needs of the place where its objects lie.

`tests/model_store/objects/test_contract.py` runs on every kind of place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class Object:
    """Bytes of an object, with the tag that changes whenever they do."""

    data: bytes
    tag: str


@dataclass(frozen=True)
class Listed:
    """An object in a list. `modified` is a UTC time of the place's own clock."""

    key: str
    tag: str
    size_bytes: int
    modified: datetime


class Objects(Protocol):
    """Objects that several processes read and change. Threads may share an instance.

    An object is whole or not there. When a method that writes returns, its change is durable, and
    every later read of any process sees it. A key is parts of letters, digits, `.`, `_` and `-`,
    with `/` in between; no part begins with a point or a dash.

    Every method raises `StoreUnavailableError` where the place does not answer in time: a write
    may have happened or not then, or happen later. They raise `StorageFullError` and
    `UnusableFolderError` with nothing changed.
    """

    @property
    def name(self) -> str:
        """Return what messages call the place: its address, without secrets."""
        ...

    def get(self, key: str) -> Object | None:
        """Return the object; None where there is none."""
        ...

    def tag(self, key: str) -> str | None:
        """Return the object's tag without its bytes; None where there is none."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write the object, whatever is there."""
        ...

    def create(self, key: str, data: bytes) -> str | None:
        """Write the object where there is none, and return its tag; None where there is one.

        Where the place did not say whether an earlier try had been written, an object of the same
        bytes counts as this one. So bytes that several processes create should differ.
        """
        ...

    def replace(self, key: str, data: bytes, tag: str) -> str | None:
        """Write the object where it still has `tag`, and return its new tag; None where it has not.

        Bytes that are there already count as those of this call, as for `create`.
        """
        ...

    def list(self, prefix: str, after: str | None = None) -> Iterator[Listed]:
        """Yield the objects whose keys begin with `prefix`, which ends in `/`, in the keys' order.

        With `after`, only keys behind it count.
        """
        ...

    def delete(self, key: str) -> bool:
        """Delete the object, and return whether there was one, as far as the place says."""
        ...


def check_key(key: str) -> str:
    """Return `key`. Raises `ValueError` for a text that is no key."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a key of an object: {key[:100]!r}")
    return key
