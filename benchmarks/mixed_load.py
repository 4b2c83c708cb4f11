"""Measure latency and memory of a server under mixed load, over HTTP on this machine.

    python -m benchmarks.mixed_load
    python -m benchmarks.mixed_load --bounded    # room for about ten adapters

The benchmark starts `abmll serve` twice on one data folder and sends it a fixed number of requests.
A small predict has one input and S = 8, on an adapter that exists. Latencies are those of whole
requests at the client.
"""

from __future__ import annotations

import random
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks import common
from benchmarks.http_server import Server, adapter_body, predict_body

PERCENTILES = (50, 95, 99)
# About ten of the default model's adapters on the device, and ten in the server.
BOUNDED = ["--memory-bytes", "600000000", "--adapter-memory-bytes", "90000000"]


def main() -> None:
    parser = common.arguments(__doc__, repeats=1)
    parser.add_argument("--latencies", type=int, default=200, help="small predicts of a latency measurement")
    parser.add_argument("--adaptations", type=int, default=8, help="adaptations that run beside them")
    parser.add_argument(
        "--requests", type=int, default=1000, help="mixed requests of the memory measurement; 0: none"
    )
    parser.add_argument("--bounded", action="store_true", help="little memory for adapters: they come and go")
    options = parser.parse_args()
    if options.quick:
        options.latencies, options.adaptations, options.requests = 5, 1, 20
    server_options = ["--threads", str(options.threads)]
    if options.bounded:
        server_options += BOUNDED
    tables: list[str] = []
    data: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "data"
        with Server(store, server_options) as server, client(server) as http:
            first_ready = server.ready_seconds
            adapter = create(http, adapter_body(0))
        with Server(store, server_options) as server, client(server) as http:
            data["start"] = start_and_first_request(server, http, adapter, first_ready, options)
            tables += ["Start and first request:", common.table(["", "seconds"], data["start"].items())]
            data["latency"] = latencies_beside_adaptations(http, adapter, options)
            tables += ["A small predict:", latency_table(data["latency"])]
            if options.requests:
                data["memory"] = memory(server, http, options)
                rows = [[k, f"{v:,}"] for k, v in data["memory"].items() if isinstance(v, int)]
                tables += ["Resident memory of the server and its children:", common.table(["", ""], rows)]
    about = (
        f"{options.latencies} small predicts a measurement, {options.adaptations} adaptations of 16 examples beside them. "
        f"Server options: `{' '.join(server_options)}`."
    )
    common.write_results("mixed_load", "A server under mixed load", [about], tables, data, options)


def client(server: Server) -> httpx.Client:
    """Return a client of `server` that waits up to ten minutes."""
    return httpx.Client(base_url=server.url, timeout=600)


def create(http: httpx.Client, body: dict[str, Any]) -> str:
    """Adapt, and return the adapter's id."""
    adapter_id: str = http.post("/v1/adapters", json=body).raise_for_status().json()["id"]
    return adapter_id


def timed_predict(http: httpx.Client, adapter: str, number: int) -> float:
    """Return the seconds of a small predict."""
    started = time.perf_counter()
    http.post("/v1/predict", json=predict_body(adapter, number)).raise_for_status()
    return time.perf_counter() - started


def start_and_first_request(
    server: Server, http: httpx.Client, adapter: str, first_ready: float, options: Any
) -> dict[str, float]:
    """Return the seconds until the server was ready, and those of the first and later requests."""
    first = timed_predict(http, adapter, 0)
    later = [timed_predict(http, adapter, n) for n in range(1, 1 + min(20, options.latencies))]
    usual = float(np.median(later))
    return {
        "first start to ready (base in the cache)": first_ready,
        "second start to ready": server.ready_seconds,
        "first request": first,
        "later requests, median": usual,
        "overhead of the first": first - usual,
    }


def latencies_beside_adaptations(http: httpx.Client, adapter: str, options: Any) -> dict[str, Any]:
    """Return the seconds of small predicts, one after another, alone and while adaptations run."""
    idle = [timed_predict(http, adapter, n) for n in range(options.latencies)]

    def adapt(number: int) -> float:
        started = time.perf_counter()
        create(http, adapter_body(1000 + number))
        return time.perf_counter() - started

    with ThreadPoolExecutor(options.adaptations) as pool:
        running = [pool.submit(adapt, n) for n in range(options.adaptations)]
        time.sleep(0.2)  # the adaptations have begun
        beside = predicts_while(running, http, adapter, options.latencies)
        adaptations = [future.result() for future in running]
    return {"idle": idle, "beside adaptations": beside, "the adaptations themselves": adaptations}


def predicts_while(running: list[Future[float]], http: httpx.Client, adapter: str, most: int) -> list[float]:
    """Return the seconds of small predicts that began one by one while any of `running` ran."""
    found: list[float] = []
    while len(found) < most and not all(future.done() for future in running):
        found.append(timed_predict(http, adapter, len(found)))
    return found


def latency_table(measured: dict[str, list[float]]) -> str:
    """Return a table of percentiles in milliseconds."""
    rows = [
        [name, len(values), *(1000 * float(np.percentile(values, p)) for p in PERCENTILES)]
        for name, values in measured.items()
        if values
    ]
    return common.table(["", "requests", *(f"p{p} ms" for p in PERCENTILES)], rows)


def memory(server: Server, http: httpx.Client, options: Any) -> dict[str, Any]:
    """Return resident bytes over mixed requests: small predicts, larger ones, and adaptations.

    Every adapter takes memory in the server and on the device, up to the budget of each. Where
    these are not `bounded`, new adapters are made in the first quarter only. Later adaptations are
    requests for adapters that exist, as from clients that retry.
    """
    rng = random.Random(options.seed)
    adapters = [create(http, adapter_body(2000 + n, shots=4, steps=1)) for n in range(4)]
    by_process: list[list[int]] = []
    making = max(20, options.requests // 4)
    for number in range(options.requests):
        if number % 20 == 19:
            new = number if number < making or options.bounded else rng.randrange(19, making, 20)
            adapters.append(create(http, adapter_body(3000 + new, shots=4, steps=1)))
        else:
            inputs = rng.choice([1, 1, 1, 4])
            body = predict_body(rng.choice(adapters), number, inputs=inputs, samples=rng.choice([0, 4, 8]))
            http.post("/v1/predict", json=body).raise_for_status()
        if number % max(1, options.requests // 20) == 0 or number == options.requests - 1:
            by_process.append(server.resident_bytes())
    samples = [sum(found) for found in by_process]
    settled = samples[len(samples) // 4 :]
    return {
        "requests": options.requests,
        "adapters made": len(set(adapters)),
        "bytes at the start": samples[0],
        "bytes after a quarter": settled[0],
        "bytes at the end": samples[-1],
        "most bytes": max(samples),
        "growth a request after the first quarter": (settled[-1] - settled[0]) * 4 // (3 * options.requests),
        "samples": samples,
        "by process": by_process,
    }


if __name__ == "__main__":
    main()
