"""The file in a data folder that says where the server of this folder listens.

A command that finds the folder in use reads it, and sends its work to that server.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from service.settings import Settings

FILE = "server.json"
ANSWERING = ("model", "posterior", "quantisation", "dtype", "readout_scale")
"""The settings that an answer depends on."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunningServer:
    """A server that uses a data folder.

    `process`, its start (seconds since 1970) and `host` tell whether it still runs. `settings` are
    those of `ANSWERING`.
    """

    url: str
    host: str
    process: int
    process_started: float
    settings: Mapping[str, Any]

    def differs(self, settings: Settings) -> list[str]:
        """Return the settings of `ANSWERING` that are others here than at the server."""
        return [name for name in ANSWERING if self.settings.get(name) != getattr(settings, name)]


def write_address(settings: Settings, url: str) -> None:
    """Say in the data folder that this process serves it at `url`. A refusal of the disk is logged."""
    process = psutil.Process()
    own = RunningServer(
        url,
        socket.gethostname(),
        process.pid,
        process.create_time(),
        {name: getattr(settings, name) for name in ANSWERING},
    )
    partial = settings.data_dir / f"{FILE}.{process.pid}"
    try:
        partial.write_text(json.dumps(asdict(own), indent=1) + "\n", "utf-8")
        partial.replace(settings.data_dir / FILE)
    except OSError as error:
        _log.warning("commands on this machine will not find the server: %s", error)


def remove_address(data_dir: Path) -> None:
    """Remove the file, if it is of this process."""
    found = running_server(data_dir)
    if found is not None and found.process == os.getpid():
        with suppress(OSError):
            (data_dir / FILE).unlink(missing_ok=True)


def running_server(data_dir: Path) -> RunningServer | None:
    """Return the server of the data folder; None where none runs on this machine.

    A file that a server left when it was killed counts for nothing: its process is not there, or
    another one has its number.
    """
    try:
        found = RunningServer(**json.loads((data_dir / FILE).read_text("utf-8")))
        started = psutil.Process(found.process).create_time()
    except (OSError, ValueError, TypeError, psutil.Error):
        return None
    here = found.host == socket.gethostname() and abs(started - found.process_started) < 1
    return found if here else None
