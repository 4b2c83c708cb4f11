"""`abmll store`: the adapters on disk, without a model."""

from __future__ import annotations

import typer

from service.cli.failures import expected_errors_in_one_line
from service.cli.output import AsJson, show
from service.cli.settings_options import SettingsCommand, with_settings
from service.settings import Settings

store = typer.Typer(help="Look after the adapters on disk.", no_args_is_help=True)


@store.command(cls=SettingsCommand)
@with_settings("data_dir")
def verify(settings: Settings, *, as_json: AsJson = False) -> None:
    """Read every adapter whole, and move damaged ones aside; status 1 where one is not intact.

    A server that uses the data folder has to be stopped first.
    """
    with expected_errors_in_one_line():
        from dataclasses import asdict  # noqa: PLC0415

        # Reading an adapter takes torch, which `abmll --help` does without.
        from model_store.adapters.store import AdapterStore  # noqa: PLC0415
        from service.cli.tables import findings_table  # noqa: PLC0415

        with AdapterStore(settings.adapters_dir) as adapters:
            intact, findings = adapters.verify()
    answer = {"intact": intact, "findings": [asdict(finding) for finding in findings]}
    show(answer, findings_table(answer), as_json)
    if findings:
        raise typer.Exit(1)
