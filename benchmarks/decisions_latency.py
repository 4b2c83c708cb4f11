"""Measure over HTTP how long typed questions take, and how many answers a server gives a second.

    python -m benchmarks.decisions_latency

An adapter of ten questions answers `POST /v1/decide`: one question about one input, ten about one,
ten about ten inputs, one after another. Then 32 clients ask ten questions about one input each, again
and again, for some seconds. Times are those of whole requests at the client, on one machine with the
server; every input is new.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks import common
from benchmarks.http_server import Server
from benchmarks.mixed_load import latency_table
from service.schemas import demo

QUESTIONS, INPUTS, CLIENTS, CASES, WORDS = 10, 10, 32, 12, 205


def main() -> None:
    parser = common.arguments(__doc__, repeats=1)
    parser.add_argument("--requests", type=int, default=20, help="requests of each latency")
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--seconds", type=float, default=60, help="how long the clients ask")
    parser.add_argument("--samples", type=int, default=16)
    options = parser.parse_args()
    if options.quick:
        options.requests, options.clients, options.seconds, options.samples = 1, 2, 1.0, 2
    serve = ["--threads", str(options.threads)]
    if options.posterior:
        serve += ["--posterior", options.posterior]
    numbers = count()
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(Path(folder) / "data", serve) as server,
        httpx.Client(base_url=server.url, timeout=600) as http,
    ):
        started = time.perf_counter()
        adapter = http.post("/v1/adapters", json=adapter_body()).raise_for_status().json()["id"]
        made = time.perf_counter() - started
        shapes = {"1 question, 1 input": (1, 1), f"{QUESTIONS} questions, 1 input": (QUESTIONS, 1),
                  f"{QUESTIONS} questions, {INPUTS} inputs": (QUESTIONS, INPUTS)}  # fmt: skip
        seconds: dict[str, list[float]] = {name: [] for name in shapes}
        for turn in range(-1, options.requests):  # the first is warm-up
            for name, (questions, inputs) in shapes.items():
                body = decide_body(adapter, next(numbers), questions, inputs, options.samples)
                taken = _timed(http, body)
                if turn >= 0:
                    seconds[name].append(taken)
        load = throughput(server.url, adapter, numbers, options)
    tables = [
        "One request after another:", latency_table(seconds),
        f"{options.clients} clients, {QUESTIONS} questions about one input:", latency_table({"": load["seconds"]}),
        common.table(["requests", "refused (429, tried again)", "requests a second", "answers a second"],
                     [[len(load["seconds"]), load["refused"], load["rate"], QUESTIONS * load["rate"]]]),
    ]  # fmt: skip
    about = (
        f"An adapter of {QUESTIONS} questions and {CASES} cases, made in {made:.1f} s; inputs of {WORDS} words "
        f"(about 250 tokens), S = {options.samples}. Server options: `{' '.join(serve)}`.",
    )
    data = {"adapter": made, "latency": seconds, "load": load}
    common.write_results("decisions_latency", "Typed questions over HTTP", about, tables, data, options)


def questions_of(number: int) -> list[dict[str, Any]]:
    """Return so many questions, of the three kinds in turn."""
    found: list[dict[str, Any]] = []
    for i in range(number):
        base = demo.QUESTIONS[i % len(demo.QUESTIONS)]
        found.append({**base, "name": f"q{i}", "instructions": f"{base['instructions']} ({i})"})
    return found


def adapter_body() -> dict[str, Any]:
    """Return a request for an adapter of all questions; predicates alone have answers in each case."""
    cases = [
        {"input": text, "answers": {f"q{i}": (i + n) % 3 == 0 for i in range(0, QUESTIONS, len(demo.QUESTIONS))}}
        for n, (text, _) in enumerate(demo.SUPPORT[:CASES])
    ]  # fmt: skip
    return {"questions": questions_of(QUESTIONS), "cases": cases}


def decide_body(adapter: str, number: int, questions: int, inputs: int, samples: int) -> dict[str, Any]:
    """Return a request whose inputs nobody asked about before."""
    texts = []
    for i in range(inputs):
        words = f"Case {number}.{i}: {' '.join(text for text, _ in 2 * demo.SUPPORT)}".split()
        texts.append(" ".join(words[:WORDS]))
    names = [f"q{i}" for i in range(questions)]
    return {"model": adapter, "questions": names, "inputs": texts, "samples": samples}


def _timed(http: httpx.Client, body: dict[str, Any]) -> float:
    started = time.perf_counter()
    http.post("/v1/decide", json=body).raise_for_status()
    return time.perf_counter() - started


def throughput(url: str, adapter: str, numbers: count[int], options: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of the answered requests of all clients, and their number a second.

    A refused request (429) is tried again after the time that the server names; its seconds are
    those of the try that was answered.
    """
    found: list[float] = []
    refused, lock = [0], threading.Lock()
    started = time.perf_counter()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=600) as http:
            while time.perf_counter() < started + options.seconds:
                with lock:
                    number = next(numbers)
                sent = time.perf_counter()
                answer = http.post(
                    "/v1/decide", json=decide_body(adapter, number, QUESTIONS, 1, options.samples)
                )
                if answer.status_code == 429:
                    with lock:
                        refused[0] += 1
                    time.sleep(min(float(answer.headers.get("retry-after", 1)), options.seconds))
                    continue
                answer.raise_for_status()
                with lock:
                    found.append(time.perf_counter() - sent)

    with ThreadPoolExecutor(options.clients) as pool:
        for future in [pool.submit(ask) for _ in range(options.clients)]:
            future.result()
    seconds = time.perf_counter() - started
    return {"seconds": found, "refused": refused[0], "rate": len(found) / seconds if found else float(np.nan)}


if __name__ == "__main__":
    main()
