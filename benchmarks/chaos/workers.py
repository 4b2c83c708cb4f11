"""Kill workers by SIGKILL while they adapt, and while they predict."""

from __future__ import annotations

import asyncio
import re
import time

import httpx
import psutil

from benchmarks.chaos.load import Load, Outcome, check_outcomes, outcomes_table
from benchmarks.chaos.oracle import Oracle, make_oracle, missing, still_right
from benchmarks.chaos.report import Report
from benchmarks.chaos.setup import Setup
from benchmarks.http_server import Server

DEADLINE = 60
RECOVERY_SECONDS = 90.0
OPTIONS = ["--max-steps", "4000", "--deadline-seconds", str(DEADLINE)]
STEPS = 100


async def run(setup: Setup) -> Report:
    """Kill half the times under adaptations and half under predictions."""
    report = Report(
        "Workers that are killed under load",
        [
            f"{setup.times} times a worker process gets SIGKILL at a random time, one half while every worker "
            f"adapts ({STEPS} steps) and one while every worker predicts. The next kill waits until all workers "
            "are up again."
        ],
    )
    with setup.server(OPTIONS) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=DEADLINE + 20) as http:
            oracle = await make_oracle(http, inputs=16, samples=16)
            differ, pairs = oracle.distinct_pairs
            report.check("the oracle tells adapters apart", f"{differ} of {pairs} pairs", differ > 0)
            outcomes: list[Outcome] = []
            acknowledged: list[str] = []
            waits: list[float] = []
            for kind in ("adapt", "predict"):
                times = setup.times // 2 + (setup.times % 2 if kind == "adapt" else 0)
                load, found = await under_load(setup, server, http, oracle, kind, times, report)
                outcomes += load.outcomes
                acknowledged += load.acknowledged
                waits += found
            check_outcomes(report, outcomes)
            lost = await missing(http, acknowledged)
            report.none(f"0 of {len(acknowledged)} acknowledged adapters lost", lost)
            report.none("answers afterwards are those of before", await still_right(http, oracle))
            most = max(waits, default=0.0)
            report.check(
                "full capacity back by itself", f"after at most {most:.1f} s", most < RECOVERY_SECONDS
            )
            outcomes_table(report, "Requests:", outcomes)
            report.data["recovery_seconds"] = waits
    return report


async def under_load(
    setup: Setup,
    server: Server,
    http: httpx.AsyncClient,
    oracle: Oracle,
    kind: str,
    times: int,
    report: Report,
) -> tuple[Load, list[float]]:
    """Kill workers under one kind of load; return it, and the seconds until all were up again."""
    adapting = kind == "adapt"
    load = Load(
        server.url, oracle,
        predictors=1 if adapting else setup.workers + 1, adapters=setup.workers + 1 if adapting else 0,
        steps=STEPS, most_seconds=DEADLINE + 15,
    )  # fmt: skip
    waits, hit = [], 0
    async with load:
        for _ in range(times):
            await asyncio.sleep(setup.random.uniform(0.5, 1.5))
            before = await counted(http, "abmll_replays_total")
            setup.random.choice(worker_processes(server, setup.executor)).kill()
            waits.append(await until_up(http, setup.workers))
            hit += await counted(http, "abmll_replays_total") > before
    what = "adaptations" if adapting else "predictions"
    report.check(
        f"kills in the middle of {what}", f"{hit} of {times} had jobs replayed", hit > 0 or not times
    )
    return load, waits


def worker_processes(server: Server, executor: str) -> list[psutil.Process]:
    """Return the processes of the workers: children, or the actors of a Ray on this machine."""
    if executor != "ray":
        return server.workers()
    found = []
    for process in server.processes():
        try:
            if "ray::RayWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


async def counted(http: httpx.AsyncClient, name: str) -> float:
    """Return a metric, added up over its labels."""
    text = (await http.get("/metrics")).text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*?}})? (\S+)$", text, re.MULTILINE))


async def until_up(http: httpx.AsyncClient, workers: int) -> float:
    """Wait until one worker was seen down and all are up, and return the seconds."""
    began, fell = time.monotonic(), False
    while (waited := time.monotonic() - began) < RECOVERY_SECONDS:
        states = [row["state"] for row in (await http.get("/v1/workers")).json()["data"]]
        fell = fell or states.count("up") < workers
        if fell and states.count("up") == workers:
            return waited
        await asyncio.sleep(0.02)
    return waited
