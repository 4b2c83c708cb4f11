"""`abmll names`: the names of adapters on disk, without a model, or those of a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import quote

import typer

from service.cli.failures import expected_errors_in_one_line
from service.cli.output import AsJson, show
from service.cli.remote import ApiKey, Remote, Url, here_or_there, read
from service.cli.settings_options import SettingsCommand, with_settings
from service.settings import Settings

if TYPE_CHECKING:
    from model_store.adapters.names import NameHistory
    from service.engine.names import Names

T = TypeVar("T")
Name = Annotated[str, typer.Argument(help="The name: 1 to 64 of a-z, 0-9, '.', '_' and '-', a letter first.")]
IfVersion = Annotated[
    int | None, typer.Option(min=0, help="Only where the name is at this version; 0: there is no such name.")
]
Note = Annotated[str | None, typer.Option(help="Why; it is stored with the version.")]

names = typer.Typer(
    help="Names of adapters in the data folder: `tickets` follows its versions, `tickets@3` is one.",
    no_args_is_help=True,
)


@names.command("list", cls=SettingsCommand)
@with_settings("data_dir", "store_url")
def list_names(
    settings: Settings, *, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """List the names, each with its current version."""
    with expected_errors_in_one_line():
        from service.api.native.names import name_object  # noqa: PLC0415
        from service.cli.tables import names_table  # noqa: PLC0415

        def here() -> list[dict[str, Any]]:
            found = _with_names(settings, lambda names: names.page(None, settings.max_names))
            return [name_object(h, found.manifests).model_dump(mode="json") for h in found.histories]

        rows = here_or_there(settings, url, api_key, here, lambda remote: list(_all_names(remote)))
        show({"names": rows}, names_table(rows), as_json)


@names.command(cls=SettingsCommand)
@with_settings("data_dir", "store_url", "model", "max_names")
def put(
    settings: Settings,
    *,
    name: Name,
    adapter: Annotated[str, typer.Argument(help="Id of a stored adapter.")],
    if_version: IfVersion = None,
    note: Note = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Point a name to an adapter, by a new version of the name."""
    _change(
        settings,
        lambda names: names.put(name, adapter, settings.model, if_version=if_version, note=note),
        lambda remote: remote.request(
            "PUT", _path(name), _given(adapter_id=adapter, if_version=if_version, note=note)
        ),
        url,
        api_key,
        as_json,
    )


@names.command(cls=SettingsCommand)
@with_settings("data_dir", "store_url")
def rollback(
    settings: Settings,
    *,
    name: Name,
    version: Annotated[int, typer.Argument(min=1, help="Number of the version to go back to.")],
    if_version: IfVersion = None,
    note: Note = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Point a name to the adapter of an earlier version, by a new version."""
    _change(
        settings,
        lambda names: names.rollback(name, version, if_version=if_version, note=note),
        lambda remote: remote.request(
            "POST", f"{_path(name)}/rollback", _given(version=version, if_version=if_version, note=note)
        ),
        url,
        api_key,
        as_json,
    )


@names.command(cls=SettingsCommand)
@with_settings("data_dir", "store_url")
def delete(settings: Settings, *, name: Name, url: Url = None, api_key: ApiKey = None) -> None:
    """Delete a name with its versions; its adapters stay."""
    with expected_errors_in_one_line():
        here_or_there(
            settings,
            url,
            api_key,
            lambda: _with_names(settings, lambda names: names.delete(name)),
            lambda remote: remote.request("DELETE", _path(name)),
        )


def _change(
    settings: Settings,
    change: Callable[[Names], Coroutine[Any, Any, NameHistory]],
    ask: Callable[[Remote], Any],
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> None:
    with expected_errors_in_one_line():
        from service import schemas  # noqa: PLC0415
        from service.api.native.names import name_object  # noqa: PLC0415
        from service.cli.tables import names_table  # noqa: PLC0415

        def here() -> dict[str, Any]:
            history = _with_names(settings, change)
            return name_object(history, {history.versions[-1].adapter_id}).model_dump(mode="json")

        row = here_or_there(settings, url, api_key, here, lambda remote: read(schemas.Name, ask(remote)))
        show(row, names_table([row]), as_json)


def _all_names(remote: Remote) -> Iterator[dict[str, Any]]:
    """Yield the names of a server, page by page."""
    from service import schemas  # noqa: PLC0415

    after, more = "", True
    while more:
        page = remote.request("GET", f"/v1/names?limit=1000{after}")
        yield from (read(schemas.Name, row) for row in page["data"])
        more = bool(page["has_more"])
        after = f"&after={quote(page['data'][-1]['name'])}" if more else ""


def _path(name: str) -> str:
    return f"/v1/names/{quote(name, safe='')}"


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _with_names(settings: Settings, work: Callable[[Names], Coroutine[Any, Any, T]]) -> T:
    """Return the result of `work` on the names in the data folder. Raises what `work` raises."""
    from service.engine.adapter_cache import AdapterCache  # noqa: PLC0415
    from service.engine.names import Names  # noqa: PLC0415
    from service.engine.registry import AdapterRegistry  # noqa: PLC0415
    from service.engine.stores import opened_stores  # noqa: PLC0415
    from service.metrics import Metrics  # noqa: PLC0415

    async def run() -> T:
        with opened_stores(settings) as stores:
            registry = AdapterRegistry(stores.adapters, AdapterCache(0, Metrics()), 0.0)
            return await work(Names(stores.names, registry, settings.max_names))

    return asyncio.run(run())
