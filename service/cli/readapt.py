"""`abmll readapt`: new adapters of stored examples with the default posterior, here or by a server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol
from urllib.parse import quote

import typer

from abmll.errors import AbmllError
from model_store.terminal import shown
from service.cli.failures import expected_errors_in_one_line
from service.cli.local_engine import MODEL_SETTINGS, with_engine
from service.cli.output import AsJson, err, show
from service.cli.remote import ApiKey, Remote, Url, here_or_there
from service.cli.settings_options import with_settings
from service.errors import ServiceError
from service.settings import Settings

if TYPE_CHECKING:
    from service.engine.engine import Engine

_PAGE = 100
INTERRUPTED = 130


class Maker(Protocol):
    """Makes adapters again: an engine in this process, or a server."""

    async def page(self, after: str | None) -> tuple[list[str], bool]:
        """Return the ids of adapters that come after one, and whether there are more."""

    async def named(self, name: str) -> str:
        """Return the id of the adapter that a name points to."""

    async def readapt(self, adapter_id: str, only_look: bool, keep_names: bool) -> Mapping[str, Any]:
        """Return what became of one adapter, as `POST /v1/adapters/{adapter_id}/readapt` says it."""


@with_settings(*MODEL_SETTINGS)
def readapt(
    settings: Settings,
    *,
    adapter: Annotated[str | None, typer.Option(help="Id of a stored adapter.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of a stored adapter.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All stored adapters.")] = False,
    only_look: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be made and what it would take, and stop.")
    ] = False,
    keep_names: Annotated[
        bool,
        typer.Option("--keep-names", help="Leave names where they are, to calibrate the new adapters first."),
    ] = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Make adapters again with the default posterior, of the examples that are stored with them.

    Names move to the new adapters, each by a new version. Interrupted, the same command goes on.
    """
    if [adapter is not None, name is not None, every].count(True) != 1:
        raise typer.BadParameter("name what to make again by one of --adapter, --name and --all")

    async def work(maker: Maker) -> tuple[list[Mapping[str, Any]], int]:
        if adapter is not None or name is not None:
            own = adapter if adapter is not None else await maker.named(name or "")
            return [await maker.readapt(own, only_look, keep_names)], 0
        return await _each(maker, await _ids(maker), only_look, keep_names)

    with expected_errors_in_one_line():
        try:
            rows, refused = here_or_there(
                settings,
                url,
                api_key,
                lambda: with_engine(settings, lambda engine: work(_Engine(engine))),
                lambda remote: asyncio.run(work(_Server(remote))),
            )
        except KeyboardInterrupt as error:
            err.print("[yellow]interrupted:[/] the same command goes on", highlight=False)
            raise typer.Exit(INTERRUPTED) from error
    from service.cli.tables import readapted_table  # noqa: PLC0415

    made = [row for row in rows if row["new_adapter_id"] != row["adapter_id"]]
    answer = {"dry_run": only_look, "readapted": made, "unchanged": len(rows) - len(made), "refused": refused}
    show(answer, readapted_table(answer), as_json)
    if refused:
        raise typer.Exit(1)


async def _ids(maker: Maker) -> list[str]:
    """Return the ids of all adapters."""
    found, more = list[str](), True
    while more:
        page, more = await maker.page(found[-1] if found else None)
        found += page
    return found


async def _each(
    maker: Maker, ids: Iterable[str], only_look: bool, keep_names: bool
) -> tuple[list[Mapping[str, Any]], int]:
    """Return what became of each adapter, and how many were refused; say at once which and why."""
    rows, refused = list[Mapping[str, Any]](), 0
    for id in ids:
        try:
            rows.append(await maker.readapt(id, only_look, keep_names))
        except (AbmllError, ServiceError) as error:
            refused += 1
            err.print(f"[red]refused:[/] {shown(f'{id}: {error}')}", highlight=False, soft_wrap=True)
    return rows, refused


# ---- who makes them


@dataclass(frozen=True)
class _Engine:
    engine: Engine

    async def page(self, after: str | None) -> tuple[list[str], bool]:
        manifests, more = await self.engine.adapters(after, _PAGE)
        return [manifest.id for manifest in manifests], more

    async def named(self, name: str) -> str:
        adapter_id, _ = await self.engine.names.resolve(name, self.engine.served.base.id)
        return adapter_id

    async def readapt(self, adapter_id: str, only_look: bool, keep_names: bool) -> Mapping[str, Any]:
        from service.api.native.readapting import readapt_response  # noqa: PLC0415

        done = await self.engine.readapt(adapter_id, dry_run=only_look, move_names=not keep_names)
        return readapt_response(done, "local").model_dump(mode="json", exclude_none=True)


@dataclass(frozen=True)
class _Server:
    """A server; one request at a time, so each may block."""

    remote: Remote

    async def page(self, after: str | None) -> tuple[list[str], bool]:
        rest = f"&after={after}" if after else ""
        page = self.remote.request("GET", f"/v1/adapters?limit={_PAGE}{rest}")
        ids = [adapter["id"] for adapter in page["data"]]
        return ids, page["has_more"] and bool(ids)

    async def named(self, name: str) -> str:
        found = self.remote.request("GET", f"/v1/names/{quote(name, safe='')}")
        return str(found["current"]["adapter_id"])

    async def readapt(self, adapter_id: str, only_look: bool, keep_names: bool) -> Mapping[str, Any]:
        body = {"dry_run": only_look, "move_names": not keep_names}
        path = f"/v1/adapters/{quote(adapter_id, safe='')}/readapt"
        return dict(self.remote.request("POST", path, body))
