"""Send a server ten times as many requests as it can answer."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from benchmarks.chaos.load import Load, Outcome, check_outcomes, outcomes_table
from benchmarks.chaos.oracle import Known, Oracle, make_oracle, missing, still_right
from benchmarks.chaos.report import Report
from benchmarks.chaos.setup import Setup
from benchmarks.http_server import Server

FACTOR = 10
QUEUE, DEADLINE = 16, 30
OPTIONS = ["--queue-limit", str(QUEUE), "--deadline-seconds", str(DEADLINE)]
INPUTS, SAMPLES = 16, 16
REFUSAL_SECONDS = 0.05
GROWTH = 0.05


@dataclass
class Observed:
    """What was seen of the server while it was overloaded."""

    live: list[float] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    in_flight: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)


async def run(setup: Setup) -> Report:
    """Measure the capacity with clients that wait, and send ten times as much with some that do
    not.
    """
    report = Report("Ten times as many requests as the server can answer", [])
    with setup.server(OPTIONS) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=DEADLINE + 20) as http:
            oracle = await make_oracle(http, inputs=INPUTS, samples=SAMPLES, questions=2)
            load = Load(server.url, oracle, predictors=QUEUE // 2, adapters=0, most_seconds=DEADLINE + 15)
            began = time.monotonic()
            async with load:
                await asyncio.sleep(max(3.0, setup.seconds / 10))
            answered = [o for o in load.outcomes if o.status == 200]
            if not answered:
                raise SystemExit("no request was answered while the capacity was measured")
            capacity = len(answered) / (time.monotonic() - began)
            report.about.append(
                f"{QUEUE // 2} clients that wait for each answer got {capacity:.1f} answers a second ({INPUTS} inputs, "
                f"{SAMPLES} samples each). Then requests came at {FACTOR * capacity:.1f} a second at random times (Poisson), for "
                f"{setup.seconds:g} s, whatever the server answered. `queue_limit` is {QUEUE}."
            )
            observed = Observed()
            outcomes = await overloaded(setup, server, oracle, FACTOR * capacity, observed)
            judge(report, outcomes, observed, setup.seconds)
            report.none("answers afterwards are those of before", await still_right(http, oracle))
            report.none("the adapters are there", await missing(http, oracle.adapters))
    report.data |= {"capacity": capacity, "bytes": observed.bytes, "in_flight": observed.in_flight}
    return report


async def overloaded(
    setup: Setup, server: Server, oracle: Oracle, rate: float, observed: Observed
) -> list[Outcome]:
    """Send requests at `rate` a second, whatever becomes of them; return what did."""
    outcomes: list[Outcome] = []
    load = Load(server.url, oracle, predictors=0, adapters=0, most_seconds=DEADLINE + 15)
    draws = random.Random(setup.seed)

    async def one(asked: Known) -> None:
        outcome, answer = await load.send("predict", "/v1/predict", asked.body)
        right = asked.right(answer.json()) if answer is not None and answer.status_code == 200 else None
        outcomes.append(Outcome(**{**vars(outcome), "right": right}))

    async with load:
        observing = asyncio.create_task(observe(server, observed))
        running = set[asyncio.Task[Any]]()
        began = due = time.monotonic()
        while time.monotonic() - began < setup.seconds:
            due += draws.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(one(draws.choice(oracle.asked)))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)
        observing.cancel()
        await asyncio.wait([observing])
    return outcomes


async def observe(server: Server, observed: Observed) -> None:
    """Ask for life, requests in flight and memory, twice a second."""
    async with httpx.AsyncClient(base_url=server.url, timeout=10) as http:
        while True:
            began = time.monotonic()
            try:
                answer = await http.get("/livez")
                observed.live.append(time.monotonic() - began)
                if answer.status_code != 200:
                    observed.dead.append(str(answer.status_code))
                metrics = (await http.get("/metrics")).text
                found = [
                    line for line in metrics.splitlines() if line.startswith("abmll_requests_in_flight ")
                ]
                observed.in_flight += [float(line.split()[1]) for line in found]
            except httpx.TransportError as error:
                observed.dead.append(type(error).__name__)
            observed.bytes.append(sum(server.resident_bytes()))
            await asyncio.sleep(0.5)


def judge(report: Report, outcomes: list[Outcome], observed: Observed, seconds: float) -> None:
    """Compare what was seen with what was asked."""
    accepted = [o.seconds for o in outcomes if o.status == 200]
    refused = [o.seconds for o in outcomes if o.status == 429]
    report.check("requests are refused", f"{len(refused)} of {len(outcomes)}", bool(refused))
    most = max(observed.in_flight, default=0.0)
    report.check("queue bounded", f"at most {most:.0f} requests in flight, limit {QUEUE}", 0 < most <= QUEUE)
    p95 = float(np.percentile(accepted, 95)) if accepted else float("inf")
    report.check("accepted p95 within the deadline", f"{p95:.2f} s of {DEADLINE} s", p95 <= DEADLINE)
    median, p99 = (float(np.percentile(refused or [np.inf], p)) for p in (50, 99))
    held = median < REFUSAL_SECONDS
    report.check("refusals under 50 ms", f"median {1e3 * median:.1f} ms, p99 {1e3 * p99:.1f} ms", held)
    first, last = (
        np.mean(part) for part in (observed.bytes[: len(observed.bytes) // 2], observed.bytes[-3:])
    )
    growth = float(last / first - 1)
    report.check("memory flat", f"{100 * growth:+.1f} % from the first half to the end", growth < GROWTH)
    slowest = max(observed.live, default=0.0)
    alive = f"{len(observed.live)} times, the slowest after {1e3 * slowest:.0f} ms; not 200: {observed.dead}"
    report.check("/livez answers 200 all along", alive, bool(observed.live) and not observed.dead)
    check_outcomes(report, outcomes)
    outcomes_table(report, f"Requests in {seconds:g} s:", outcomes)
