"""Fill the disk of a server, and take its right to write away, while clients use it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import httpx

from benchmarks.chaos.load import Load, Outcome, check_outcomes, outcomes_table
from benchmarks.chaos.oracle import Oracle, make_oracle, missing, still_right
from benchmarks.chaos.report import Report
from benchmarks.chaos.setup import Setup
from benchmarks.http_server import Server

DISK_BYTES = 64 << 20
MOST_SECONDS = 60.0
FULL = {"store_failed"}
"""Code of the error that says that an adapter could not be written."""


async def run(setup: Setup) -> Report:
    """Fill the disk, empty it, mount it for reading only, and for writing again."""
    if shutil.which("unshare") is None or not can_mount(setup.folder):
        raise SystemExit("this machine lets no process mount a file system of its own (unshare, mount)")
    report = Report(
        "A full disk, and a store that can only be read",
        [
            f"The data folder is a tmpfs of {DISK_BYTES >> 20} MiB in a mount namespace of the server (no rights of "
            "the machine's administrator are needed). It is filled to the last byte and emptied. Then the folder of "
            "the adapters is mounted read-only, and for writing again. Each is under load."
        ],
    )
    data = setup.folder / "data"
    data.mkdir()
    mount = f'mount -t tmpfs -o size={DISK_BYTES} none "$0" && exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, str(data)]
    with setup.server(prefix=prefix) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=MOST_SECONDS) as http:
            oracle = await make_oracle(http)
            there = Path(f"/proc/{server.pid}/root{data}")
            filler = there / "filler"
            acknowledged: list[str] = []
            for phase in ("full", "read-only"):
                if phase == "full":
                    fill(filler)
                else:
                    remount(server, data, "ro")
                acknowledged += await broken(setup, report, server, http, oracle, phase)
                if phase == "full":
                    filler.unlink()
                else:
                    remount(server, data, "rw")
                acknowledged += await mended(setup, report, server, oracle, phase)
            report.none(
                f"0 of {len(acknowledged)} acknowledged adapters lost", await missing(http, acknowledged)
            )
            report.none("nothing half-written is left", leftovers(there))
    return report


async def broken(
    setup: Setup, report: Report, server: Server, http: httpx.AsyncClient, oracle: Oracle, phase: str
) -> list[str]:
    """Use the server while it cannot write; return the adapters that it acknowledged all the same."""
    async with Load(server.url, oracle, predictors=2, adapters=2, steps=1, most_seconds=MOST_SECONDS) as load:
        await asyncio.sleep(setup.seconds)
        live = (await http.get("/livez")).status_code
        ready = (await http.get("/readyz")).status_code
    report.check(f"{phase}: /livez and /readyz answer", f"{live}, {ready}", (live, ready) == (200, 200))
    adapted = [o for o in load.outcomes if o.kind == "adapt"]
    codes = {o.code for o in adapted if o.status not in {200, 201}}
    report.check(
        f"{phase}: an adapter that cannot be written is refused clearly",
        f"{len(adapted)} asked for, {len(load.acknowledged)} made, errors {sorted(codes)}",
        bool(codes) and codes <= FULL,
    )
    check_outcomes(report, load.outcomes, f"{phase}: ")
    outcomes_table(report, f"Requests while the store is {phase}:", load.outcomes)
    report.none(f"{phase}: answers are those of before", await still_right(http, oracle))
    return load.acknowledged


async def mended(setup: Setup, report: Report, server: Server, oracle: Oracle, phase: str) -> list[str]:
    """Use the server when it can write again; return the adapters that it made."""
    async with Load(server.url, oracle, predictors=1, adapters=1, steps=1, most_seconds=MOST_SECONDS) as load:
        await asyncio.sleep(min(setup.seconds, 5.0))
    bad: list[Outcome] = [o for o in load.outcomes if o.status not in {200, 201}]
    found = f"{len(load.acknowledged)} adapters made, {len(bad)} errors"
    report.check(f"{phase}, mended: it works again by itself", found, bool(load.acknowledged) and not bad)
    return load.acknowledged


def fill(path: Path) -> None:
    """Write a file until no byte fits any more."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(b"\0" * size) == size:
                    pass
            except OSError:
                continue


def remount(server: Server, data: Path, mode: str) -> None:
    """Have the server see the adapters' folder as `ro` or `rw`.

    A mount with open files cannot become read-only. So one that is lies over it.
    """
    folder = str(data / "adapters")
    enter = ["nsenter", "--target", str(server.pid), "--user", "--mount", "--preserve-credentials"]
    over = [["mount", "--bind", folder, folder], ["mount", "-o", "remount,bind,ro", folder]]
    for command in over if mode == "ro" else [["umount", folder]]:
        subprocess.run([*enter, *command], check=True)


def can_mount(folder: Path) -> bool:
    """Return whether a process of ours may mount a file system in a namespace of its own."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def leftovers(there: Path) -> list[str]:
    """Return files in the data folder whose name says that they were being written."""
    found = (Path(root, name) for root, _, names in os.walk(there) for name in names)
    return [str(path.relative_to(there)) for path in found if "tmp" in path.name or "partial" in path.name]
