"""The secret of one tenant that keys the ids of its adapters.

It is a file in the tenant's folder, or an object of a shared store.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from model_store.errors import CorruptArtifactError
from model_store.objects.contract import Objects
from model_store.storage import refusal_is_an_error, write_private

_FILE = "id_key"
_BYTES = 32


def read_or_make_id_key(folder: Path) -> bytes:
    """Return the key in `folder`, made at random where there is none. It is on the disk by then.

    The caller owns the adapter store in the folder, so that nobody else makes a key meanwhile. With
    another key, equal requests would be adapted to again, since their ids are others. Raises
    `CorruptArtifactError` for a file that is no key, and `UnusableFolderError`.
    """
    path = folder / _FILE
    with refusal_is_an_error("the key of a tenant's ids"):
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_private(path, secrets.token_bytes(_BYTES))
        key = path.read_bytes()
    return _checked(key, str(path))


def id_key_among(objects: Objects) -> bytes:
    """Return the key among the objects of a tenant, made at random where there is none.

    Of several servers that make one, the first one's counts. Raises `CorruptArtifactError` for an
    object that is no key, and as `Objects`.
    """
    found = objects.get(_FILE)
    if found is None:
        objects.create(_FILE, secrets.token_bytes(_BYTES))
        found = objects.get(_FILE)
    return _checked(found.data if found else b"", f"{objects.name}/{_FILE}")


def _checked(key: bytes, place: str) -> bytes:
    if len(key) != _BYTES:
        raise CorruptArtifactError(
            f"{place} has {len(key)} bytes, not the {_BYTES} of a key: put it back from a copy, or remove it; "
            "without it, requests of this tenant no longer find the adapters that they made"
        )
    return key
