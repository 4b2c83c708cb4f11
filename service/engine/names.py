"""The names of a server's adapters: how they are given, changed and resolved."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from model_store.adapters.names import NAME, NameHistory, NameStore, Version
from model_store.errors import JournalChangedError, StoreError
from service.engine.registry import AdapterRegistry
from service.errors import (
    AdapterNamedError,
    InvalidNameError,
    LimitExceededError,
    NameChangedError,
    UnknownModelError,
    UnknownNameError,
    over_limit,
    store_failure,
)

if TYPE_CHECKING:
    from model_store.adapters.manifest import AdapterManifest

log = logging.getLogger(__name__)
T = TypeVar("T")
MODEL = re.compile(rf"({NAME.pattern})(?:@([1-9][0-9]{{0,8}}))?")
"""A name, and the number of its version where one is meant."""


def versioned(name: str, version: Version) -> str:
    """Return how a request names this version for good, such as `tickets@3`."""
    return f"{name}@{version.number}"


@dataclass(frozen=True)
class NamedAdapters:
    """Names with their histories, and the manifests of the adapters of `versions`.

    An adapter that was deleted has no manifest here. `has_more` says that the page ends before the
    names do, or the versions of the one name.
    """

    histories: Sequence[NameHistory]
    versions: Sequence[Version]
    manifests: Mapping[str, AdapterManifest]
    has_more: bool


class Names:
    """Owns the names of one server. Used from one event loop; the disk is written in threads.

    A change is on disk before it is answered. Changes of names come one after the other. A name is
    pointed to an adapter while that cannot be deleted, and `check_unnamed` is called where names
    cannot be pointed to it. Between servers of one store that is so but for the moment in which
    both happen: the name then points to an adapter that is not there.
    """

    def __init__(self, store: NameStore, adapters: AdapterRegistry, most: int) -> None:
        """Own the names of `store`, at most `most` of them, for these adapters."""
        self._store, self._adapters, self._most = store, adapters, most
        self._lock = asyncio.Lock()

    async def put(
        self,
        name: str,
        adapter_id: str,
        base_id: str,
        *,
        if_version: int | None = None,
        note: str | None = None,
    ) -> NameHistory:
        """Point the name to an adapter by a new version, and return its history.

        With `if_version`, only where that is the number of the current version; 0 says that there
        is no such name. `base_id` is the name that the base model has. Raises `InvalidNameError`,
        `UnknownAdapterError`, `NameChangedError`, `LimitExceededError` and `StoreFailedError`.
        """
        check_name(name, base_id)
        return await _to_its_end(self._put(name, adapter_id, if_version, note))

    async def rollback(
        self, name: str, number: int, *, if_version: int | None = None, note: str | None = None
    ) -> NameHistory:
        """Point the name to the adapter of an earlier version, by a new version.

        Raises `UnknownNameError`, and as `put`.
        """
        await self._refresh(name)
        adapter_id = self._version(name, number).adapter_id
        return await _to_its_end(self._put(name, adapter_id, if_version, note, number))

    async def move(self, old_id: str, new_id: str, note: str) -> list[str]:
        """Point every name that now points to the adapter `old_id` to `new_id`, by a new version
        each.

        Return these names. Raises `UnknownAdapterError` and `StoreFailedError`.
        """
        return await _to_its_end(self._move(old_id, new_id, note))

    async def of(self, adapter_id: str) -> list[str]:
        """Return the names that now point to the adapter."""
        await asyncio.to_thread(self._store.refresh_all)
        return await asyncio.to_thread(self._store.named, adapter_id)

    async def delete(self, name: str) -> None:
        """Delete the name with its versions. Raises `UnknownNameError` and `StoreFailedError`."""
        await _to_its_end(self._delete(name))

    async def history(self, name: str, before: int | None, limit: int) -> NamedAdapters:
        """Return one name with at most `limit` of its versions, the newest first.

        With `before`, only versions of lower numbers count. Raises `UnknownNameError`.
        """
        await self._refresh(name)
        history = self._history(name)
        older = [v for v in reversed(history.versions) if before is None or v.number < before]
        return await self._page([history], older[:limit], len(older) > limit, history.versions[-1:])

    async def page(self, after: str | None, limit: int) -> NamedAdapters:
        """Return at most `limit` names behind `after`, with their current versions."""
        await asyncio.to_thread(self._store.refresh_all)
        found = await asyncio.to_thread(self._store.page, after, limit + 1)
        shown = found[:limit]
        current = [version for history in shown for version in history.versions[-1:]]
        return await self._page(shown, current, len(found) > limit)

    async def resolve(self, model: str, base_id: str) -> tuple[str, str]:
        """Return the adapter that a name, a version or an id stands for, and what to call it.

        That is the version of a name (`tickets@3`), or the id. The adapter need not be there.
        Raises `UnknownModelError`.
        """
        if model.startswith("adp_"):
            return model, model
        found = MODEL.fullmatch(model)
        if found:
            await self._refresh(found[1])
        history = self._store.get(found[1]) if found else None
        if found is None or history is None or history.current is None:
            message = f"there is no model {_short(model)!r}: a model is {base_id!r}, the id of an adapter, or a name"
            raise UnknownModelError(message, "model")
        version = history.version(int(found[2])) if found[2] else history.current
        if version is None:
            message = f"the name {found[1]!r} has no version {found[2]}; it is at {history.last}"
            raise UnknownModelError(message, "model")
        return version.adapter_id, versioned(found[1], version)

    async def check_unnamed(self, adapter_id: str) -> None:
        """Raise `AdapterNamedError` if the adapter is the current version of a name."""
        names = await self.of(adapter_id)
        if names:
            shown = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if names[3:] else "")
            raise AdapterNamedError(
                f"the name {shown} points to adapter {adapter_id}: point it to another, or delete it, first",
                "adapter_id",
            )

    async def _put(
        self,
        name: str,
        adapter_id: str,
        if_version: int | None,
        note: str | None,
        rollback_of: int | None = None,
    ) -> NameHistory:
        async with self._adapters.existing(adapter_id), self._lock:
            await self._refresh(name)
            if rollback_of is not None:
                self._version(name, rollback_of)  # it may have been deleted meanwhile
            history = self._store.get(name)
            current = history.last if history else 0
            if if_version is not None and if_version != current:
                raise _changed(name, current, if_version)
            if name not in self._store:
                await asyncio.to_thread(self._store.refresh_all)
            if name not in self._store and len(self._store) >= self._most:
                found = f"{len(self._store)} names, deleted ones included"
                raise LimitExceededError(over_limit(found, self._most, "max_names"), "name")
            try:
                with _storing(name):
                    return await asyncio.to_thread(
                        self._store.put,
                        name,
                        adapter_id,
                        note=note,
                        rollback_of=rollback_of,
                        if_version=if_version,
                    )
            except JournalChangedError as error:  # by another server, a moment ago
                history = self._store.get(name)
                raise _changed(name, history.last if history else 0, if_version) from error

    async def _move(self, old_id: str, new_id: str, note: str) -> list[str]:
        async with self._adapters.existing(new_id), self._lock:
            await asyncio.to_thread(self._store.refresh_all)
            names = self._store.named(old_id)
            for name in names:
                with _storing(name):
                    await asyncio.to_thread(self._store.put, name, new_id, note=note)
            return names

    async def _delete(self, name: str) -> None:
        async with self._lock:
            await self._refresh(name)
            self._history(name)
            with _storing(name):
                await asyncio.to_thread(self._store.delete, name)

    async def _refresh(self, name: str) -> None:
        """See what other servers have made of the name. Raises `StoreUnavailableError` of stores."""
        if not self._store.is_current(name):
            await asyncio.to_thread(self._store.refresh, name)

    def _history(self, name: str) -> NameHistory:
        history = self._store.get(name)
        if history is None:
            raise UnknownNameError(f"there is no name {_short(name)!r}", "name")
        return history

    def _version(self, name: str, number: int) -> Version:
        history = self._history(name)
        version = history.version(number)
        if version is None:
            message = f"the name {name!r} has no version {number}; it is at {history.last}"
            raise UnknownNameError(message, "version")
        return version

    async def _page(
        self,
        histories: Sequence[NameHistory],
        versions: Sequence[Version],
        has_more: bool,
        others: Sequence[Version] = (),
    ) -> NamedAdapters:
        ids = {version.adapter_id for version in (*versions, *others)}
        return NamedAdapters(histories, versions, await self._adapters.manifests(ids), has_more)


def check_name(name: str, base_id: str) -> None:
    """Raise `InvalidNameError` for a text that cannot be a name beside the base model `base_id`."""
    if name == base_id:
        raise InvalidNameError(f"{name!r} is the base model: choose another name", "name")
    if not NAME.fullmatch(name):
        raise InvalidNameError(
            f"{_short(name)!r} is no name: it has 1 to 64 of a-z, 0-9, '.', '_' and '-', begins with a letter, "
            "and not with 'adp_'",
            "name",
        )


@contextmanager
def _storing(name: str) -> Iterator[None]:
    try:
        yield
    except JournalChangedError:
        raise
    except (OSError, StoreError) as error:
        log.exception("the name %s could not be stored", name)
        raise store_failure(error, "the name could not be stored, so nothing is acknowledged") from error


def _changed(name: str, current: int, expected: int | None) -> NameChangedError:
    now = f"is at version {current}" if current else "does not exist"
    return NameChangedError(f"the name {name!r} {now}, not at {expected}", "if_version")


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, which goes on to its end where the caller is cancelled.

    Else its locks would be free while a thread still writes.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"
