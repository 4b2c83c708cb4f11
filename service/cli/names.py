"""`abmll names`: the names of adapters on disk, without a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from service.cli.failures import expected_errors_in_one_line
from service.cli.output import AsJson, show
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
def list_names(settings: Settings, *, as_json: AsJson = False) -> None:
    """List the names, each with its current version."""
    with expected_errors_in_one_line():
        from service.api.native.names import name_object  # noqa: PLC0415
        from service.cli.tables import names_table  # noqa: PLC0415

        found = _with_names(settings, lambda names: names.page(None, settings.max_names))
        rows = [name_object(h, found.manifests).model_dump(mode="json") for h in found.histories]
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
    as_json: AsJson = False,
) -> None:
    """Point a name to an adapter, by a new version of the name."""
    _change(
        settings,
        lambda names: names.put(name, adapter, settings.model, if_version=if_version, note=note),
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
    as_json: AsJson = False,
) -> None:
    """Point a name to the adapter of an earlier version, by a new version."""
    _change(settings, lambda names: names.rollback(name, version, if_version=if_version, note=note), as_json)


@names.command(cls=SettingsCommand)
@with_settings("data_dir", "store_url")
def delete(settings: Settings, *, name: Name) -> None:
    """Delete a name with its versions; its adapters stay."""
    with expected_errors_in_one_line():
        _with_names(settings, lambda names: names.delete(name))


def _change(
    settings: Settings, change: Callable[[Names], Coroutine[Any, Any, NameHistory]], as_json: bool
) -> None:
    with expected_errors_in_one_line():
        from service.api.native.names import name_object  # noqa: PLC0415
        from service.cli.tables import names_table  # noqa: PLC0415

        history = _with_names(settings, change)
        row = name_object(history, {history.versions[-1].adapter_id}).model_dump(mode="json")
        show(row, names_table([row]), as_json)


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
