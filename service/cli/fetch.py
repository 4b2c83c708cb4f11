"""`abmll fetch`: downloads all that the first use needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.failures import expected_errors_in_one_line
from service.cli.output import AsJson, err, show
from service.cli.settings_options import with_settings
from service.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from model_store.pretrained.first_use import Needed


@with_settings("model", "posterior", "quantisation", "device", "cache_dir")
def fetch(
    settings: Settings,
    *,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only look what is there. Exits with 1 where something is missing."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Download all that the first use needs, so that later ones need no network.

    What is there stays. Interrupted, the same command goes on with what is missing.
    """
    with expected_errors_in_one_line():
        from service.cli.tables import fetched_table  # noqa: PLC0415

        rows: list[dict[str, Any]] = []
        for one in needed(settings):
            folder = one.cached()
            if folder is None and not check:
                size = (
                    "of unknown size" if one.download_bytes is None else f"{one.download_bytes / 1e6:.0f} MB"
                )
                err.print(
                    f"{one.what} {one.name}: {size}, from the {one.source}", highlight=False, markup=False
                )
                folder = one.fetch()
                rows.append(_row(one, folder, "fetched"))
            else:
                rows.append(_row(one, folder, "missing" if folder is None else "there"))
        answer = {"needed": rows}
        show(answer, fetched_table(answer), as_json)
        if check and any(row["state"] == "missing" for row in rows):
            raise typer.Exit(1)


def needed(settings: Settings) -> list[Needed]:
    """Return what the model of `settings` is loaded from. Raises as `choose_posterior`."""
    from model_store.pretrained.first_use import needed_for  # noqa: PLC0415
    from service.executors.loading import choose_posterior  # noqa: PLC0415

    return needed_for(
        settings.model,
        choose_posterior(settings),
        quantisation=settings.quantisation,
        device=settings.device,
        cache_dir=settings.cache_dir,
    )


def _row(one: Needed, folder: Path | None, state: str) -> dict[str, Any]:
    size = (
        None if folder is None else sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    )
    return {
        "what": one.what,
        "name": one.name,
        "state": state,
        "source": one.source,
        "download_bytes": one.download_bytes,
        "folder": None if folder is None else str(folder),
        "folder_bytes": size,
    }
