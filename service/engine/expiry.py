"""Adapters that nobody has used for long are deleted, with their texts (the setting `ttl_seconds`)."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from service.errors import AdapterNamedError, UnknownAdapterError
from service.principals.audit import AuditLog
from service.principals.records import Principal

if TYPE_CHECKING:
    from service.engine.tenants import Tenants

log = logging.getLogger(__name__)
LONGEST_PAUSE_SECONDS = 3600.0


class Expiry:
    """Owns the task that deletes unused adapters of all tenants. Used from one event loop.

    It looks ten times within `ttl_seconds`, at least once an hour. An adapter that a name points to
    stays. When adapters were used is written down at each look, so a crash may let one expire by a
    tenth of the time too early.
    """

    def __init__(self, tenants: Tenants, ttl_seconds: float, audit: AuditLog) -> None:
        self._tenants, self._ttl_seconds, self._audit = tenants, ttl_seconds, audit
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop looking, and write down what was used."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for own in self._tenants.all():
            await own.registry.note_uses()

    async def look(self) -> None:
        """Delete what has not been used for `ttl_seconds`."""
        for tenant in await asyncio.to_thread(self._tenants.on_disk):
            try:
                await self._look_at(tenant)
            except Exception:  # what ends this task, or one tenant, would have texts stay for ever
                log.exception("unused adapters of %s could not be deleted; it is tried again", tenant)

    async def _look_at(self, tenant: str) -> None:
        own = await self._tenants.of(tenant)
        await own.registry.note_uses()
        for adapter_id in await own.registry.unused_since(time.time() - self._ttl_seconds):
            try:
                await own.delete_adapter(adapter_id)
            except (AdapterNamedError, UnknownAdapterError):
                continue
            self._audit.write(Principal(tenant), "expire", adapter_id)

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:  # such as a folder that cannot be listed
                log.exception("unused adapters could not be deleted; it is tried again")
            await asyncio.sleep(min(LONGEST_PAUSE_SECONDS, self._ttl_seconds / 10))
