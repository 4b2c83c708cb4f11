"""`abmll store`: the adapters, names and calibrations on disk, without a model."""

from __future__ import annotations

import typer

from service.cli.failures import expected_errors_in_one_line
from service.cli.output import AsJson, show
from service.cli.settings_options import SettingsCommand, with_settings
from service.settings import Settings

store = typer.Typer(help="Look after the adapters, names and calibrations on disk.", no_args_is_help=True)


@store.command(cls=SettingsCommand)
@with_settings("data_dir")
def verify(settings: Settings, *, as_json: AsJson = False) -> None:
    """Read every adapter, name and calibration whole, and move damaged ones aside; status 1 if there are any.

    A server that uses the data folder has to be stopped first.
    """
    with expected_errors_in_one_line():
        from dataclasses import asdict  # noqa: PLC0415

        # Reading an adapter takes torch, which `abmll --help` does without.
        from model_store.adapters.gate_journals import GateJournals  # noqa: PLC0415
        from model_store.adapters.names import NameStore  # noqa: PLC0415
        from model_store.adapters.store import AdapterStore  # noqa: PLC0415
        from service.cli.tables import findings_table  # noqa: PLC0415
        from service.gating.state import read_state  # noqa: PLC0415

        with AdapterStore(settings.adapters_dir) as adapters:  # its lock is that of the others too
            names = NameStore(settings.names_dir)
            found = {
                "adapter": adapters.verify(),
                "name": (names.intact, names.findings),
                "calibration": GateJournals(settings.calibrations_dir).verify(
                    lambda id, records: read_state(id, records, settings.alarm_delta)
                ),
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
