"""Delay, cut and half-open the connection between the server and a Ray cluster with its workers."""

from __future__ import annotations

import asyncio
import importlib
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx

from benchmarks.chaos.load import Load, check_outcomes, outcomes_table
from benchmarks.chaos.oracle import make_oracle, missing, still_right
from benchmarks.chaos.proxy import Mode, Proxy
from benchmarks.chaos.report import Report
from benchmarks.chaos.setup import Setup

DEADLINE = 20
SLACK_SECONDS = 5.0
RECOVERY_SECONDS = 180.0
OPTIONS = ["--deadline-seconds", str(DEADLINE), "--cancel-grace-seconds", "1"]
FAULTS: tuple[Mode, ...] = ("delay", "half-open", "cut")


async def run(setup: Setup) -> Report:
    """Meet each fault for so many seconds, and wait until all workers are up again."""
    report = Report(
        "The wire between the server and Ray",
        [
            f"A Ray cluster on this machine has the workers; the server reaches it through a TCP proxy (`ray://`). For "
            f"{setup.seconds:g} s each, pieces are late, no byte goes through (half-open), and connections are cut and "
            f"refused. `deadline_seconds` is {DEADLINE}."
        ],
    )
    with cluster(setup.workers) as port:
        async with Proxy(port, delay_seconds=0.05) as proxy:
            of_ray = replace(setup, executor="ray")
            options = [*OPTIONS, "--ray-address", f"ray://127.0.0.1:{proxy.own_port}"]
            # The proxy needs the event loop while the server starts and ends.
            server = await asyncio.to_thread(of_ray.server, options)
            acknowledged: list[str] = []
            try:
                async with httpx.AsyncClient(base_url=server.url, timeout=DEADLINE + 30) as http:
                    oracle = await make_oracle(http)
                    for fault in FAULTS:
                        load = Load(
                            server.url,
                            oracle,
                            predictors=3,
                            adapters=2,
                            steps=8,
                            most_seconds=DEADLINE + SLACK_SECONDS,
                        )
                        async with load:
                            await asyncio.sleep(1.0)
                            proxy.turn(fault)
                            await asyncio.sleep(setup.seconds)
                            proxy.turn("pass")
                        waited = await until_up(http, setup.workers)
                        what = f"{fault}: full capacity back by itself"
                        report.check(what, f"after {waited:.1f} s", waited < RECOVERY_SECONDS)
                        check_outcomes(report, load.outcomes, f"{fault}: ")
                        outcomes_table(report, f"Requests, {fault}:", load.outcomes)
                        acknowledged += load.acknowledged
                        report.none(f"{fault}: answers are those of before", await still_right(http, oracle))
                    lost = await missing(http, acknowledged)
                    report.none(f"0 of {len(acknowledged)} acknowledged adapters lost", lost)
            finally:
                await asyncio.to_thread(server.__exit__)
    return report


async def until_up(http: httpx.AsyncClient, workers: int) -> float:
    """Wait until all workers are up and one answers, and return the seconds."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < RECOVERY_SECONDS:
        rows = (await http.get("/v1/workers")).json()["data"]
        if [row["state"] for row in rows].count("up") == workers:
            return waited
        await asyncio.sleep(0.2)
    return waited


@contextmanager
def cluster(workers: int) -> Iterator[int]:
    """Start a Ray cluster of one node, and yield the port of its clients' server."""
    utils = importlib.import_module("ray.cluster_utils")
    port = free_port()
    node = {"num_cpus": workers, "object_store_memory": 100 << 20, "include_dashboard": False}
    made = utils.Cluster(initialize_head=True, head_node_args={**node, "ray_client_server_port": port})
    try:
        yield port
    finally:
        made.shutdown()


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
