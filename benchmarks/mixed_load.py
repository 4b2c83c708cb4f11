"""Latency, fairness, memory and recovery of a real server under mixed load, over HTTP on this machine.

    python -m benchmarks.mixed_load
    python -m benchmarks.mixed_load --tenant-header X-Tenant     # fairness between a heavy and a light tenant
    python -m benchmarks.mixed_load --kill                       # SIGKILL to worker processes under load
    python -m benchmarks.mixed_load --bounded                    # room for about ten adapters, while new ones keep coming

Starts `abmll serve` twice on one data folder, sends bounded numbers of requests, and stops it. A small predict is one
input, S = 8, on an adapter that is there. Latencies are of whole requests as a client sees them.
"""

from __future__ import annotations

import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks import common
from benchmarks.http_server import Server, adapter_body, distributions, predict_body
from model_store.pretrained.convert import compute_dtype

PERCENTILES = (50, 95, 99)
# About ten of the default model's adapters on the device, and ten in the server.
BOUNDED = ["--memory-bytes", "600000000", "--adapter-memory-bytes", "90000000"]


def main() -> None:
    parser = common.arguments(__doc__, repeats=1)
    parser.add_argument("--latencies", type=int, default=200, help="small predicts of a latency measurement")
    parser.add_argument("--adaptations", type=int, default=8, help="that run beside them")
    parser.add_argument(
        "--requests", type=int, default=1000, help="mixed requests of the memory measurement; 0: none"
    )
    parser.add_argument(
        "--tenant-header", help="have the server tell tenants apart by it, and measure fairness"
    )
    parser.add_argument("--bounded", action="store_true", help="little memory for adapters: they come and go")
    parser.add_argument("--kill", action="store_true", help="kill worker processes under load")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--clients", type=int, default=4, help="that load the server while workers are killed"
    )
    parser.add_argument("--kill-pause-seconds", type=float, default=2.0, help="of work between two kills")
    options = parser.parse_args()
    if options.quick:
        options.latencies, options.adaptations, options.requests, options.kills = 5, 1, 20, 2
    server_options = ["--threads", str(options.threads)]
    if options.tenant_header:
        server_options += ["--tenant-header", options.tenant_header]
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
            if options.tenant_header:
                data["fairness"] = fairness(http, adapter, options)
                tables += ["The light tenant's small predict:", latency_table(data["fairness"])]
            if options.requests:
                data["memory"] = memory(server, http, options)
                rows = [[k, f"{v:,}"] for k, v in data["memory"].items() if isinstance(v, int)]
                tables += ["Resident memory of the server and its children:", common.table(["", ""], rows)]
            if options.kill:
                data["kill"] = kill_workers(server, http, options)
                tables += ["Workers killed under load:", common.table(["", ""], data["kill"].items())]
    about = (
        f"{options.latencies} small predicts a measurement, {options.adaptations} adaptations of 16 examples beside them. "
        f"Server options: `{' '.join(server_options)}`."
    )
    common.write_results("mixed_load", "A server under mixed load", [about], tables, data, options)


def client(server: Server, **headers: str) -> httpx.Client:
    """A client of `server` that waits long."""
    return httpx.Client(base_url=server.url, timeout=600, headers=headers)


def create(http: httpx.Client, body: dict[str, Any]) -> str:
    """Adapt, and return the adapter's id."""
    adapter_id: str = http.post("/v1/adapters", json=body).raise_for_status().json()["id"]
    return adapter_id


def timed_predict(http: httpx.Client, adapter: str, number: int, **headers: str) -> float:
    """Seconds of a small predict."""
    started = time.perf_counter()
    http.post("/v1/predict", json=predict_body(adapter, number), headers=headers).raise_for_status()
    return time.perf_counter() - started


def start_and_first_request(
    server: Server, http: httpx.Client, adapter: str, first_ready: float, options: Any
) -> dict[str, float]:
    """Seconds until ready, and what the first request costs over later ones."""
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
    """Of small predicts one after another: alone, and while adaptations run."""
    idle = [timed_predict(http, adapter, n) for n in range(options.latencies)]

    def adapt(number: int) -> float:
        started = time.perf_counter()
        create(http, adapter_body(1000 + number))
        return time.perf_counter() - started

    with ThreadPoolExecutor(options.adaptations) as pool:
        running = [pool.submit(adapt, n) for n in range(options.adaptations)]
        time.sleep(0.2)  # they are under way
        beside = predicts_while(running, http, adapter, options.latencies)
        adaptations = [future.result() for future in running]
    return {"idle": idle, "beside adaptations": beside, "the adaptations themselves": adaptations}


def predicts_while(
    running: list[Future[float]], http: httpx.Client, adapter: str, most: int, **headers: str
) -> list[float]:
    """Latencies of small predicts one after another that began while any of `running` was not done."""
    found: list[float] = []
    while len(found) < most and not all(future.done() for future in running):
        found.append(timed_predict(http, adapter, len(found), **headers))
    return found


def latency_table(measured: dict[str, list[float]]) -> str:
    """Percentiles in milliseconds."""
    rows = [
        [name, len(values), *(1000 * float(np.percentile(values, p)) for p in PERCENTILES)]
        for name, values in measured.items()
        if values
    ]
    return common.table(["", "requests", *(f"p{p} ms" for p in PERCENTILES)], rows)


def fairness(http: httpx.Client, adapter: str, options: Any) -> dict[str, list[float]]:
    """Latencies of a light tenant's predicts alone, and while a heavy one keeps eight requests of 16 inputs in flight."""
    header, light = options.tenant_header, {options.tenant_header: "light"}
    alone = [timed_predict(http, adapter, n, **light) for n in range(options.latencies)]
    done = threading.Event()

    def heavy(number: int) -> list[float]:
        seconds = []
        for round_ in range(options.latencies):  # bounded, should the light tenant never be answered
            if done.is_set():
                break
            body = predict_body(adapter, 100 * number + round_, inputs=16)
            started = time.perf_counter()
            http.post("/v1/predict", json=body, headers={header: "heavy"})
            seconds.append(time.perf_counter() - started)
        return seconds

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(heavy, n) for n in range(8)]
        time.sleep(0.2)
        beside = [timed_predict(http, adapter, n, **light) for n in range(options.latencies)]
        done.set()
        heavy_seconds = [seconds for future in running for seconds in future.result()]
    return {"alone": alone, "beside a heavy tenant": beside, "the heavy tenant (16 inputs)": heavy_seconds}


def memory(server: Server, http: httpx.Client, options: Any) -> dict[str, Any]:
    """Resident bytes over mixed requests: small predicts, larger ones, and adaptations.

    Every adapter that is kept takes memory, in the server and on the device, up to its budgets. Where these are not `bounded`,
    new ones are made in the first quarter only; later adaptations ask for what is there, as clients that retry do.
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


def kill_workers(server: Server, http: httpx.Client, options: Any) -> dict[str, Any]:
    """SIGKILL to a worker, again and again while clients run; then every acknowledged adapter and every answer is checked."""
    if not server.workers():
        raise SystemExit("--kill: the server has no worker processes")
    adapters = [create(http, adapter_body(4000 + n, shots=4, steps=1)) for n in range(4)]
    expected = {
        (adapter, n): distributions(answer_of(http, predict_body(adapter, n)))
        for adapter in adapters
        for n in range(4)
    }
    done, statuses, acknowledged, worst = threading.Event(), Counter[str](), list(adapters), [0.0]

    def load(number: int) -> None:
        rng = random.Random(number)
        for round_ in range(100_000):
            if done.is_set():
                return
            try:
                if round_ % 10 == 9:
                    body = adapter_body(5000 + 1000 * number + round_, shots=4, steps=1)
                    response = http.post("/v1/adapters", json=body)
                    if response.is_success:
                        acknowledged.append(response.json()["id"])
                else:
                    key = rng.choice(list(expected))
                    response = http.post("/v1/predict", json=predict_body(*key))
                    if response.status_code == 200:
                        found = distributions(response.json())
                        worst[0] = max(worst[0], common.largest_difference(found, expected[key]))
                statuses[str(response.status_code)] += 1
                if not response.is_success:
                    time.sleep(0.2)  # as `Retry-After` asks a client to
            except httpx.TransportError as error:
                statuses[type(error).__name__] += 1

    killed, back = 0, []
    with ThreadPoolExecutor(options.clients) as pool:
        running = [pool.submit(load, n) for n in range(options.clients)]
        try:
            while killed < options.kills:
                time.sleep(options.kill_pause_seconds)
                victim = wait_for(lambda: next(iter(server.workers()), None))
                answered = statuses["200"]
                victim.send_signal(signal.SIGKILL)
                killed += 1
                started = time.perf_counter()
                wait_for(lambda answered=answered: statuses["200"] > answered + options.clients)  # type: ignore[misc]
                back.append(time.perf_counter() - started)
        finally:
            done.set()
        for future in running:
            future.result()
    lost = [adapter for adapter in set(acknowledged) if not served(http, adapter)]
    allowed = common.tolerance(compute_dtype("cpu"))
    common.check_close("answers under kills", worst[0], allowed)
    if lost:
        raise SystemExit(f"{len(lost)} acknowledged adapters are not served any more: {lost[0]}")
    return {
        "kills": killed,
        "answers by status": dict(statuses),
        "acknowledged adapters": len(set(acknowledged)),
        "of these not served afterwards": len(lost),
        "largest difference of an answer from the reference": worst[0],
        "seconds from a kill to answers again, median": float(np.median(back)),
        "the longest": max(back),
    }


def wait_for(found: Callable[[], Any], seconds: float = 120) -> Any:
    """What `found` returns once it is true; `SystemExit` where it never is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if value := found():
                return value
        except psutil.Error:
            pass
        time.sleep(0.05)
    raise SystemExit("the server did not come back after a kill")


def answer_of(http: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a predict request."""
    answer: dict[str, Any] = http.post("/v1/predict", json=body).raise_for_status().json()
    return answer


def served(http: httpx.Client, adapter: str) -> bool:
    """Whether the adapter is listed and answers."""
    listed = http.get(f"/v1/adapters/{adapter}").status_code
    return listed == http.post("/v1/predict", json=predict_body(adapter, 0)).status_code == 200


if __name__ == "__main__":
    main()
