"""`abmll store`: the adapters, names and calibrations of a store, without a model."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.failures import expected_errors_in_one_line
from service.cli.output import AsJson, show
from service.cli.settings_options import SettingsCommand, with_settings
from service.settings import Settings

store = typer.Typer(
    help="Look after the adapters, names and calibrations of a data folder, or of the store at --store-url. "
    "A server that uses the data folder has to be stopped first; those of a shared store go on.",
    no_args_is_help=True,
)


@store.command(cls=SettingsCommand)
@with_settings("data_dir", "store_url")
def verify(settings: Settings, *, as_json: AsJson = False) -> None:
    """Read every adapter, name and calibration whole, and move damaged ones aside; status 1 if
    there are any.
    """
    with expected_errors_in_one_line():
        # Reading an adapter takes torch, which `abmll --help` does without.
        from service.cli.tables import findings_table  # noqa: PLC0415
        from service.engine.stores import opened_stores  # noqa: PLC0415

        with opened_stores(settings) as stores:
            names = stores.names
            found = {
                "adapter": stores.adapters.verify(),
                "name": (names.intact, names.findings) if stores.objects is None else names.verify(),
                "calibration": stores.calibrations.verify(_calibration_of(settings)),
            }
    answer = {
        "intact": {kind: intact for kind, (intact, _) in found.items()},
        "findings": [
            {"kind": kind, **asdict(finding)} for kind, (_, rows) in found.items() for finding in rows
        ],
    }
    show(answer, findings_table(answer), as_json)
    if answer["findings"]:
        raise typer.Exit(1)


@store.command(cls=SettingsCommand)
@with_settings("data_dir", "store_url")
def gc(
    settings: Settings,
    *,
    min_age_days: Annotated[
        float, typer.Option(min=0, help="Only what has not changed for so many days.")
    ] = 7.0,
    only_look: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what belongs to no adapter, name or calibration: what broken-off writes left, and
    damaged entries.
    """
    with expected_errors_in_one_line():
        from model_store.adapters.garbage import find_garbage  # noqa: PLC0415
        from service.cli.tables import garbage_table  # noqa: PLC0415
        from service.engine.stores import opened_stores  # noqa: PLC0415

        with opened_stores(settings) as stores:
            found = find_garbage(stores, settings.data_dir, timedelta(days=min_age_days))
            for garbage in () if only_look else found:
                garbage.remove()
        rows = [
            {
                "what": garbage.what,
                "place": garbage.place,
                "bytes": garbage.size_bytes,
                "modified": garbage.modified.isoformat(timespec="seconds"),
            }
            for garbage in found
        ]
        answer = {"removed": not only_look, "garbage": rows}
        show(answer, garbage_table(answer), as_json)


@store.command("export", cls=SettingsCommand)
@with_settings("data_dir", "store_url")
def export_(
    settings: Settings,
    *,
    file: Annotated[
        Path, typer.Argument(dir_okay=False, help="The tar file to write; it must not be there.")
    ],
    as_json: AsJson = False,
) -> None:
    """Write all adapters, names and calibrations into one tar file of JSON and safetensors."""
    with expected_errors_in_one_line():
        from model_store.adapters.transfer import export_stores  # noqa: PLC0415
        from service.cli.tables import counts_table  # noqa: PLC0415
        from service.engine.stores import opened_stores  # noqa: PLC0415

        with opened_stores(settings) as stores:
            counts = export_stores(stores, file)
        show({"exported": counts}, counts_table("exported", counts), as_json)


@store.command("import", cls=SettingsCommand)
@with_settings("data_dir", "store_url")
def import_(
    settings: Settings,
    *,
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="A file of `abmll store export`.")
    ],
    as_json: AsJson = False,
) -> None:
    """Add what a tar file has, once all of it is checked; what is there with another content stays.

    Exits with 1 where something was left out for that.
    """
    with expected_errors_in_one_line():
        from model_store.adapters.transfer import import_stores  # noqa: PLC0415
        from service.cli.tables import moved_table  # noqa: PLC0415
        from service.engine.stores import opened_stores  # noqa: PLC0415

        with opened_stores(settings) as stores:
            moved = [asdict(row) for row in import_stores(stores, file, _calibration_of(settings))]
    show({"entries": moved}, moved_table(moved), as_json)
    if any(row["outcome"] == "conflict" for row in moved):
        raise typer.Exit(1)


def _calibration_of(settings: Settings) -> Any:
    """Return what reads a calibration from the records of its journal, and raises where it cannot."""
    from service.gating.state import read_state  # noqa: PLC0415

    return lambda key, records: read_state(key, records, settings.alarm_delta)
