"""Send mixed requests of several surfaces for long, and look at errors and at the slope of memory."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import httpx

from benchmarks.chaos.oracle import OPTIONS, Oracle, adapter_body, make_oracle, still_right
from benchmarks.chaos.report import Report
from benchmarks.chaos.setup import Setup
from benchmarks.http_server import Server
from benchmarks.soak import MB, least_squares
from service.schemas import demo

CLIENTS = 4
KEPT = 20  # adapters of a client, before it deletes the oldest
READINGS = 200
BOUNDED = ["--adapter-memory-bytes", str(1 << 22), "--status-seconds", "60"]
NOISE_SHARE = 0.01
"""Growth in the second half that counts as noise, as a part of the memory at its start."""


async def run(setup: Setup) -> Report:
    """Have clients send mixed requests for so many seconds."""
    report = Report(
        "Mixed traffic",
        [
            f"{CLIENTS} clients for {setup.seconds:g} s: predictions on known adapters, streams, questions, chat, classify, new "
            f"adapters with names, of which each client deletes the oldest beyond {KEPT}, and wrong requests. Memory is that of "
            "the server and its children; the slope is by least squares over the second half."
        ],
    )
    failures: Counter[str] = Counter()
    done: Counter[str] = Counter()
    readings: list[tuple[float, float]] = []
    with setup.server(BOUNDED) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
            oracle = await make_oracle(http)
            end = time.monotonic() + setup.seconds
            clients = [
                Client(http, oracle, random.Random(f"{setup.seed} {n}"), end, f"n{n}", done, failures)
                for n in range(CLIENTS)
            ]
            reading = asyncio.create_task(read(server, readings, setup.seconds / READINGS))
            await asyncio.gather(*(client.run() for client in clients))
            reading.cancel()
            report.none("answers afterwards are those of before", await still_right(http, oracle))
    report.none(f"no error in {done.total()} requests", failures)
    judge_memory(report, readings)
    report.table("Requests:", ["what", "number"], [[what, n] for what, n in sorted(done.items())])
    report.data["readings"] = readings
    return report


def judge_memory(report: Report, readings: list[tuple[float, float]]) -> None:
    """Check the slope of the second half of the readings: pairs of seconds and bytes."""
    second = readings[len(readings) // 2 :]
    slope, error = least_squares(second)
    if math.isnan(slope):
        report.check("memory slope 0 within noise", "too few readings", False)
        return
    grown = slope * (second[-1][0] - second[0][0]) / second[0][1]
    found = (
        f"{3600 * slope / MB:+.1f} MB an hour, standard error {3600 * error / MB:.1f}; {100 * grown:+.2f} % in the second "
        f"half, to {second[-1][1] / MB:,.0f} MB"
    )
    report.check("memory slope 0 within noise", found, slope <= 3 * error or grown <= NOISE_SHARE)


async def read(server: Server, readings: list[tuple[float, float]], every_seconds: float) -> None:
    """Read the resident bytes of all processes of the server again and again."""
    while True:
        readings.append((time.monotonic(), float(sum(server.resident_bytes()))))
        await asyncio.sleep(every_seconds)


class Client:
    """One client, which chooses each request at random and counts what is not as it should be."""

    def __init__(
        self, http: httpx.AsyncClient, oracle: Oracle, draws: random.Random, end: float, name: str,
        done: Counter[str], failures: Counter[str],
    ) -> None:  # fmt: skip
        self._http, self._oracle, self._draws, self._end, self._name = http, oracle, draws, end, name
        self._done, self._failures = done, failures
        self._made: deque[str] = deque()
        self._numbers = itertools.count(draws.randrange(10**9))

    async def run(self) -> None:
        """Send requests until the end."""
        kinds = [self.predict] * 8 + [
            self.stream,
            self.decide,
            self.chat,
            self.classify,
            self.adapt,
            self.wrong,
            self.look,
        ]
        while time.monotonic() < self._end:
            await self._draws.choice(kinds)()

    async def predict(self) -> None:
        """Predict what the oracle knows."""
        asked = self._draws.choice(self._oracle.asked)
        answer = await self.send("predict", "POST", "/v1/predict", asked.body)
        if answer.status_code == 200 and not asked.right(answer.json()):
            self._failures["predict: wrong answer"] += 1

    async def stream(self) -> None:
        """Read a stream to its end."""
        asked = self._draws.choice(self._oracle.asked)
        answer = await self.send("stream", "POST", "/v1/predict", {**asked.body, "stream": True})
        if "event: done" not in answer.text:
            self._failures["stream: not whole"] += 1

    async def decide(self) -> None:
        """Ask typed questions without cases."""
        body = {"questions": demo.QUESTIONS[:1], "inputs": ["Where is my parcel?"], "samples": 0}
        await self.send("decide", "POST", "/v1/decide", body)

    async def chat(self) -> None:
        """Write free text of a few tokens."""
        body = {"model": self._draws.choice(self._oracle.adapters), "max_tokens": 4,
                "messages": [{"role": "user", "content": "Where is my parcel?"}]}  # fmt: skip
        await self.send("chat", "POST", "/v1/chat/completions", body)

    async def classify(self) -> None:
        """Classify by examples, which are the same each time."""
        texts = ("I paid twice.", "The parcel is late.", "The fee is wrong.", "The courier was here.")
        examples = [{"text": text, "label": OPTIONS[i % 2]} for i, text in enumerate(texts)]
        await self.send(
            "classify", "POST", "/v1/classify", {"inputs": ["The bill is wrong."], "examples": examples}
        )

    async def adapt(self) -> None:
        """Make an adapter, name it, and delete the oldest."""
        answer = await self.send(
            "adapt", "POST", "/v1/adapters", adapter_body(next(self._numbers), steps=2), 201
        )
        if answer.status_code != 201:
            return
        self._made.append(answer.json()["id"])
        await self.send("name", "PUT", f"/v1/names/{self._name}", {"adapter_id": self._made[-1]})
        if len(self._made) > KEPT:
            await self.send("delete", "DELETE", f"/v1/adapters/{self._made.popleft()}")

    async def wrong(self) -> None:
        """Send what has to be refused."""
        await self.send("wrong field", "POST", "/v1/predict", {"inputs": [], "nonsense": 1}, 422)
        await self.send("unknown id", "GET", "/v1/adapters/adp_0", None, 404)

    async def look(self) -> None:
        """List and look at the server."""
        for path in ("/v1/adapters?limit=1000", "/v1/models", "/metrics", "/livez"):
            await self.send("look", "GET", path)

    async def send(
        self, what: str, method: str, path: str, body: Mapping[str, Any] | None = None, expected: int = 200
    ) -> httpx.Response:
        """Send a request, and count it and another status than the expected one."""
        answer = await self._http.request(method, path, json=body)
        self._done[what] += 1
        if answer.status_code != expected:
            self._failures[f"{what}: {answer.status_code} {answer.text[:150]}"] += 1
        return answer
