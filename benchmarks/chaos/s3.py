"""Have the bucket of a shared store answer 503, answer late, and cut connections, under load."""

from __future__ import annotations

import asyncio
import uuid

import httpx

from benchmarks.chaos.load import Load, check_outcomes, outcomes_table
from benchmarks.chaos.oracle import make_oracle, missing, still_right
from benchmarks.chaos.report import Report
from benchmarks.chaos.setup import Setup, of_tests

STORE_SECONDS = 3.0
MOST_SECONDS = 60.0
LATE_SECONDS = 0.3
OPTIONS = ["--store-timeout-seconds", str(STORE_SECONDS)]


async def run(setup: Setup) -> Report:
    """Meet each fault for so many seconds, with a healthy time after it."""
    s3 = of_tests("s3_server")
    report = Report(
        "A bucket that fails",
        [
            f"The store is a bucket of moto's S3 server on this machine, whose every answer has a fault for {setup.seconds:g} "
            f"s each: 503, {LATE_SECONDS:g} s late, cut before the request is done, cut after it, cut in the middle of the "
            f"answer. The server gives a call of the store up after {STORE_SECONDS:g} s."
        ],
    )
    bucket = s3.S3Server()
    faults = {
        "503": s3.answers_503,
        "late": s3.slow(LATE_SECONDS),
        "cut before": s3.cuts_before,
        "cut after": s3.cuts_after,
        "cut halfway": s3.cuts_halfway,
    }
    url = f"s3://{s3.BUCKET}/{uuid.uuid4().hex}"
    options = [*OPTIONS, "--store-url", url]
    acknowledged: list[str] = []
    try:
        with setup.server(options, environment=bucket.environment) as server:
            async with httpx.AsyncClient(base_url=server.url, timeout=MOST_SECONDS) as http:
                oracle = await make_oracle(http)
                for name, fault in faults.items():
                    load = Load(
                        server.url, oracle, predictors=2, adapters=2, steps=1, most_seconds=MOST_SECONDS
                    )
                    async with load:
                        with bucket.failing(fault):
                            await asyncio.sleep(setup.seconds)
                            live = (await http.get("/livez")).status_code
                    report.check(f"{name}: /livez answers", live, live == 200)
                    check_outcomes(report, load.outcomes, f"{name}: ")
                    outcomes_table(report, f"Requests, {name}:", load.outcomes)
                    acknowledged += load.acknowledged
                    again = Load(
                        server.url, oracle, predictors=1, adapters=1, steps=1, most_seconds=MOST_SECONDS
                    )
                    async with again:
                        await asyncio.sleep(2.0)
                    bad = [o.name for o in again.outcomes if o.status not in {200, 201}]
                    report.none(f"{name}: no error after the fault", bad)
                    acknowledged += again.acknowledged
                report.none("answers are those of before", await still_right(http, oracle))
        # Another server has an empty cache: it finds only what the bucket has.
        with setup.server(options, environment=bucket.environment, name="other") as other:
            async with httpx.AsyncClient(base_url=other.url, timeout=MOST_SECONDS) as http:
                lost = await missing(http, acknowledged)
                report.none(f"0 of {len(acknowledged)} acknowledged adapters lost, for another server", lost)
                report.none("another server answers as before", await still_right(http, oracle))
    finally:
        bucket.close()
    return report
