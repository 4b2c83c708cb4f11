"""Stop servers by SIGTERM under load, and start the workers of one again by SIGHUP."""

from __future__ import annotations

import asyncio
import signal
import time

import httpx

from benchmarks.chaos.load import Load, Outcome, check_outcomes, outcomes_table
from benchmarks.chaos.oracle import make_oracle, missing, still_right
from benchmarks.chaos.report import Report
from benchmarks.chaos.setup import Setup
from benchmarks.http_server import Server

DRAIN, DEADLINE = 30, 60
OPTIONS = ["--drain-seconds", str(DRAIN), "--deadline-seconds", str(DEADLINE)]
STEPS = 16
RESTART_SECONDS = 180.0


async def run(setup: Setup) -> Report:
    """Restart the workers so many times, and then stop and start the server so many times."""
    report = Report(
        "SIGTERM and SIGHUP under load",
        [
            f"{setup.times} times the workers are started again one after another by SIGHUP, and {setup.times} times the "
            f"server gets SIGTERM and another starts on the same data folder. `drain_seconds` is {DRAIN}."
        ],
    )
    with setup.server(OPTIONS) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=DEADLINE) as http:
            oracle = await make_oracle(http)
            load = Load(server.url, oracle, predictors=3, adapters=2, steps=STEPS, most_seconds=DEADLINE + 15)
            seconds = []
            async with load:
                for _ in range(setup.times):
                    await asyncio.sleep(setup.random.uniform(0.2, 1.0))
                    seconds.append(await restarted(server, http))
            most = max(seconds, default=0.0)
            report.check("SIGHUP: all workers are new", f"after at most {most:.1f} s", most < RESTART_SECONDS)
            bad = [f"{o.kind} {o.name}" for o in load.outcomes if o.status not in {200, 201}]
            report.none(f"SIGHUP: no request of {len(load.outcomes)} fails", bad)
            check_outcomes(report, load.outcomes, "SIGHUP: ")
            outcomes_table(report, "Requests beside SIGHUP:", load.outcomes)
            acknowledged = load.acknowledged
    outcomes: list[Outcome] = []
    statuses, drains, lost, wrong = list[int | None](), list[float](), list[str](), list[str]()
    for _ in range(setup.times):
        with setup.server(OPTIONS) as server:
            load = Load(server.url, oracle, predictors=3, adapters=2, steps=STEPS, most_seconds=DEADLINE + 15)
            async with httpx.AsyncClient(base_url=server.url, timeout=DEADLINE) as http, load:
                lost += await missing(http, acknowledged)
                wrong += await still_right(http, oracle)
                await asyncio.sleep(setup.random.uniform(0.5, 1.5))
                began = time.monotonic()
                server.send(signal.SIGTERM)
                while server.status is None and time.monotonic() - began < DRAIN + 30:
                    await asyncio.sleep(0.02)
                drains.append(time.monotonic() - began)
            statuses.append(server.status)
            # A server that has drained listens no more, and then ends: it has taken no such
            # request.
            outcomes += [o for o in load.outcomes if not (o.code == "ConnectError" and o.at > began)]
            acknowledged += load.acknowledged
    bad = [f"{o.kind} {o.name}" for o in outcomes if o.status not in {200, 201, 503}]
    report.none("SIGTERM: only 503 with Retry-After beside answers", bad)
    check_outcomes(report, outcomes, "SIGTERM: ")
    report.check("SIGTERM: exit status 0", statuses, set(statuses) <= {0})
    found = f"at most {max(drains, default=0.0):.1f} s"
    report.check("SIGTERM: ends within drain_seconds", found, max(drains, default=0.0) < DRAIN + 10)
    with setup.server(OPTIONS) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=DEADLINE) as http:
            lost += await missing(http, acknowledged)
    report.none(f"0 of {len(acknowledged)} acknowledged adapters lost", lost)
    report.none("answers are those of before", wrong)
    outcomes_table(report, "Requests beside SIGTERM:", outcomes)
    return report


async def restarted(server: Server, http: httpx.AsyncClient) -> float:
    """Send SIGHUP, and return the seconds until every worker has been started once more and is up."""
    before = {row["name"]: row["restarts"] for row in (await http.get("/v1/workers")).json()["data"]}
    began = time.monotonic()
    server.send(signal.SIGHUP)
    while (waited := time.monotonic() - began) < RESTART_SECONDS:
        rows = (await http.get("/v1/workers")).json()["data"]
        if all(row["state"] == "up" and row["restarts"] > before[row["name"]] for row in rows):
            return waited
        await asyncio.sleep(0.1)
    return waited
