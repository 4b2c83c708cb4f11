"""Kill the server by SIGKILL in the middle of a batch; `benchmarks/bulk.py` does it and counts the
rows.
"""

from __future__ import annotations

import asyncio

from benchmarks import bulk
from benchmarks.chaos.report import Report
from benchmarks.chaos.setup import Setup

MOST_KILLS, INPUTS, AT_ONCE = 3, 64, 12
SHARE = 0.9
"""Least throughput of a batch, as a part of the direct way's."""


async def run(setup: Setup) -> Report:
    """Run the rows directly, as a batch, and as a batch with kills."""
    kills = min(MOST_KILLS, setup.times)
    found = await asyncio.to_thread(bulk.measure, setup.rows, kills, setup.options, INPUTS, AT_ONCE)
    report = Report(
        "A batch whose server is killed",
        [
            f"Rows of one input and {bulk.SAMPLES} samples. {found.compared:,} of them by {AT_ONCE} clients with {INPUTS} rows a "
            f"request, and as a batch; {found.rows:,} as a batch while the server and its workers get SIGKILL {kills} "
            "times and start again."
        ],
    )
    rows = f"{found.answered:,} of {found.rows:,} rows"
    report.check("each row once, in order", rows, found.in_order and found.answered == found.rows)
    report.check(
        "throughput within 10 % of the direct path's", f"{found.ratio:.2f} times", found.ratio >= SHARE
    )
    report.table("Ways:", ["way", "rows", "seconds", "rows a second"], found.ways)
    report.data |= {"starts_seconds": found.starts_seconds, "peak_mb": found.peak_mb}
    return report
