"""Kill the server and its workers by SIGKILL while it writes adapters and names, and start it
again.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx

from benchmarks.chaos.load import Load, Outcome, check_outcomes, outcomes_table
from benchmarks.chaos.oracle import make_oracle, missing, still_right
from benchmarks.chaos.report import Report
from benchmarks.chaos.setup import Setup

MOST_SECONDS = 60.0


async def run(setup: Setup) -> Report:
    """Kill the server in its writes so many times, each time on the same data folder."""
    report = Report(
        "A server that is killed while it writes",
        [
            f"{setup.times} times the server and its workers get SIGKILL at a random time, while clients make "
            "adapters of one gradient step and point a name to each of them. Then a server starts on the "
            "same data folder."
        ],
    )
    outcomes: list[Outcome] = []
    acknowledged, lost, wrong, starts = list[str](), list[str](), list[str](), list[float]()
    version, backward = 0, list[str]()
    server = setup.server()
    try:
        async with httpx.AsyncClient(timeout=MOST_SECONDS) as http:
            http.base_url = httpx.URL(server.url)
            oracle = await make_oracle(http)
            for _ in range(setup.times):
                load = Load(server.url, oracle, predictors=1, adapters=3, steps=1, most_seconds=MOST_SECONDS)
                async with load:
                    naming = asyncio.create_task(name_adapters(http, load))
                    await asyncio.sleep(setup.random.uniform(0.5, 2.0))
                    await asyncio.to_thread(server.kill)
                    version = max(version, await naming)
                    load.stop()
                outcomes += load.outcomes
                acknowledged += load.acknowledged
                server = await asyncio.to_thread(setup.server)
                starts.append(server.ready_seconds)
                http.base_url = httpx.URL(server.url)
                lost += await missing(http, load.acknowledged)
                wrong += await still_right(http, oracle)
                found = await http.get("/v1/names/newest")
                at = found.json()["current"]["version"] if found.status_code == 200 else 0
                if at < version:
                    backward.append(f"acknowledged {version}, found {at}")
            lost += await missing(http, acknowledged)
        report.none(f"0 of {len(acknowledged)} acknowledged adapters lost", lost)
        report.check("adapters were being written", f"{len(acknowledged)} acknowledged", bool(acknowledged))
        report.none(f"no acknowledged version of a name lost (the last is {version})", backward)
        report.check("names were being written", f"{version} versions", version > 0)
        report.none("answers after each start are those of before", wrong)
        check_outcomes(report, outcomes, lost_connections=True)
    finally:
        server.__exit__()
    verified = verify(setup.folder / "data")
    report.check("`abmll store verify` finds nothing damaged", verified[1] or "nothing", verified[0] == 0)
    report.data["start_seconds"] = starts
    outcomes_table(report, "Requests:", outcomes)
    return report


async def name_adapters(http: httpx.AsyncClient, load: Load) -> int:
    """Point a name to the newest adapter until the server is gone; return the last acknowledged
    version.
    """
    version, named = 0, 0
    while True:
        if len(load.acknowledged) == named:
            await asyncio.sleep(0.01)
            if load.gone:
                return version
            continue
        named = len(load.acknowledged)
        try:
            answer = await http.put("/v1/names/newest", json={"adapter_id": load.acknowledged[-1]})
        except httpx.TransportError:
            return version
        if answer.status_code == 200:
            version = answer.json()["current"]["version"]


def verify(data: Path) -> tuple[int, str]:
    """Return the exit status of `abmll store verify`, and what it says where it is not 0."""
    command = [
        str(Path(sys.executable).parent / "abmll"),
        "store",
        "verify",
        "--json",
        "--data-dir",
        str(data),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return ended.returncode, (ended.stdout + ended.stderr)[-300:] if ended.returncode else ""
