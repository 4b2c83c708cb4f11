"""Delay, cut and half-open the connections between clients and the server."""

from __future__ import annotations

import asyncio
import time

import httpx

from benchmarks.chaos.load import Load, check_outcomes, outcomes_table
from benchmarks.chaos.oracle import make_oracle, missing, still_right
from benchmarks.chaos.proxy import Proxy
from benchmarks.chaos.report import Report
from benchmarks.chaos.setup import Setup
from benchmarks.chaos.workers import counted

DEADLINE = 20
OPTIONS = ["--deadline-seconds", str(DEADLINE), "--cancel-grace-seconds", "1", "--body-seconds", "5"]


async def run(setup: Setup) -> Report:
    """Meet each fault for so many seconds; meanwhile other clients use the server directly."""
    report = Report(
        "The wire between clients and the server",
        [
            f"Clients use the server through a TCP proxy for {setup.seconds:g} s a fault: each piece is late, connections are "
            "cut every half second, or stay open without a byte (half-open). A client beside them uses the server directly. "
            f"`deadline_seconds` is {DEADLINE}."
        ],
    )
    with setup.server(OPTIONS) as server:
        port = int(server.url.rpartition(":")[2])
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=DEADLINE + 15) as http,
            Proxy(port) as proxy,
        ):
            oracle = await make_oracle(http)
            acknowledged: list[str] = []
            for fault in ("delay", "cut", "half-open"):
                hung = fault == "half-open"
                patience = max(1.0, setup.seconds / 2) if hung else DEADLINE + 15  # they give up meanwhile
                far = Load(proxy.url, oracle, predictors=4, adapters=2, steps=8, most_seconds=patience)
                near = Load(server.url, oracle, predictors=1, adapters=0, most_seconds=DEADLINE + 15)
                async with near, far:
                    await asyncio.sleep(0.5)
                    if fault == "cut":
                        for _ in range(max(1, int(2 * setup.seconds))):
                            proxy.abort()
                            await asyncio.sleep(0.5)
                    else:
                        proxy.turn("delay" if fault == "delay" else "half-open")
                        await asyncio.sleep(setup.seconds)
                    proxy.turn("pass")
                acknowledged += far.acknowledged
                outcomes_table(report, f"Requests through the proxy, {fault}:", far.outcomes)
                judged = [o for o in far.outcomes if not (hung and o.status == -1)]
                # The server closes a connection on which no request comes for `body_seconds`.
                check_outcomes(report, judged, f"{fault}: ", lost_connections=fault != "delay")
                bad = [o.name for o in near.outcomes if o.status != 200]
                report.none(f"{fault}: no other client of {len(near.outcomes)} requests sees it", bad)
                waited = await until_idle(http)
                what = f"{fault}: the server waits for no client that is gone"
                report.check(what, f"idle after {waited:.1f} s", waited < DEADLINE)
            report.none(
                f"0 of {len(acknowledged)} acknowledged adapters lost", await missing(http, acknowledged)
            )
            report.none("answers are those of before", await still_right(http, oracle))
    return report


async def until_idle(http: httpx.AsyncClient) -> float:
    """Wait until no request is in flight, for at most twice the deadline; return the seconds."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < 2 * DEADLINE:
        if await counted(http, "abmll_requests_in_flight") == 0:
            break
        await asyncio.sleep(0.1)
    return waited
