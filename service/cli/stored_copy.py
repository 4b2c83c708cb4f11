"""A copy of a stored adapter, for a dry run beside the server that owns the data folder."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from model_store.adapters.manifest import ADAPTER_ID
from model_store.adapters.names import NameStore
from service.engine.names import MODEL
from service.settings import Settings


def copy_stored(settings: Settings, model: str, own: Settings) -> None:
    """Copy the adapter that `model` names, with its name and calibrations, into the folder of `own`.

    `model` is an id, a name or a version of a name. The server may go on using its folder. Where it
    has no such adapter, nothing is copied, and the engine on `own` says so. Raises
    `UnusableFolderError`.
    """
    named = MODEL.fullmatch(model)
    if named:
        _copy(settings.names_dir / named[1], own.names_dir)
        history = NameStore(own.names_dir).get(named[1])
        version = history and (history.version(int(named[2])) if named[2] else history.current)
        model = version.adapter_id if version else ""
    if ADAPTER_ID.fullmatch(model):
        _copy(settings.adapters_dir / model, own.adapters_dir)
        for journal in settings.calibrations_dir.glob(f"{model}*"):
            _copy(journal, own.calibrations_dir)


def _copy(folder: Path, into: Path) -> None:
    with suppress(FileNotFoundError):  # the server may delete it meanwhile
        shutil.copytree(folder, into / folder.name)
