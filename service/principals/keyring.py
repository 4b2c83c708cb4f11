"""The keys that a server knows: the keys file in memory, read again when it has changed."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from service.errors import UnauthenticatedError
from service.principals.keys_file import Key, Keys, digest_of, id_of, read_keys
from service.principals.records import UNLIMITED, Limits, Principal
from service.settings.values import SettingsError

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
"""Longest time until a change of the keys file is seen."""
_NO_DIGEST = "0" * 64


class KeyRing:
    """Owns the keys of a server. Used from one event loop.

    A file that can no longer be read, or is not a keys file, is logged, and leaves the keys that
    were read last.
    """

    def __init__(self, path: Path) -> None:
        """Read the keys. Raises `SettingsError`."""
        self._path = path
        self._seen = self._stamp()
        self._failed: tuple[object, str] | None = None  # what was logged last of the file
        self._looked = time.monotonic()
        self._take(read_keys(path))

    def authenticate(self, text: str | None) -> Principal:
        """Return whose the key `text` is. Raises `UnauthenticatedError`, which says nothing of it.

        The time does not depend on how much of a key is right: digests are compared, in constant
        time, also for an id that no key has.
        """
        self._look()
        if text is None:
            raise UnauthenticatedError(
                "send a key, as `Authorization: Bearer KEY` or in the header `x-api-key`"
            )
        key = self._keys.get(id_of(text) or "")
        matches = hmac.compare_digest(digest_of(text), key.digest if key else _NO_DIGEST)
        if key is None or not matches or not key.is_valid(datetime.now(UTC)):
            raise _wrong()
        return self._principal(key)

    def current(self, principal: Principal) -> Principal:
        """Return a principal that was known before with what its key allows now.

        One without a key comes from before there were any, and stays. Raises `UnauthenticatedError`
        where the key has been revoked, or has expired.
        """
        if principal.key_id is None:
            return principal
        self._look()
        key = self._keys.get(principal.key_id)
        if key is None or key.tenant != principal.tenant or not key.is_valid(datetime.now(UTC)):
            raise _wrong()
        return self._principal(key)

    def _principal(self, key: Key) -> Principal:
        return Principal(key.tenant, key.id, key.scopes, limits=self._limits.get(key.tenant, UNLIMITED))

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        stamp = self._stamp()
        if stamp == self._seen:
            return
        try:
            self._take(read_keys(self._path))
        except SettingsError as error:  # tried again: it may be of the moment, such as too many open files
            if (found := (stamp, str(error))) != self._failed:
                self._failed = found
                log.error("the keys that were read last stay: %s", error)
        else:
            self._seen, self._failed = stamp, None
            log.info("%d keys were read again", len(self._keys))

    def _take(self, keys: Keys) -> None:
        self._keys: Mapping[str, Key] = {key.id: key for key in keys.keys}
        self._limits: Mapping[str, Limits] = keys.tenants

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns


def _wrong() -> UnauthenticatedError:
    return UnauthenticatedError("the key is not valid: it is wrong, revoked or expired")
