"""What the benchmarks of faults count as broken, and what their proxy does. They themselves need
real servers.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from benchmarks.chaos import overload, traffic
from benchmarks.chaos.__main__ import FAULTS
from benchmarks.chaos.load import Outcome, check_outcomes
from benchmarks.chaos.oracle import OPTIONS, Known, Oracle
from benchmarks.chaos.proxy import Proxy
from benchmarks.chaos.report import Report
from benchmarks.chaos.sockets import Attack, gets, judge, posts
from benchmarks.chaos.tenants import differences


def outcome(status: int = 200, *, code: str = "", retry: bool = False, right: bool | None = None) -> Outcome:
    return Outcome("predict", status, code, 0.5, retry, right, time.monotonic())


def broken(*outcomes: Outcome, **options: Any) -> list[str]:
    report = Report("", [])
    check_outcomes(report, [outcome(right=True), *outcomes], **options)
    return [check.asked for check in report.checks if not check.held]


CLEAR = "every request succeeds or gets a retryable error with Retry-After"


@pytest.mark.parametrize(
    ("found", "options", "expected"),
    [
        (outcome(right=False), {}, ["0 wrong answers"]),
        (outcome(-1), {}, ["no request hangs"]),
        (outcome(500, code="internal_error"), {}, [CLEAR]),
        (outcome(503, code="worker_lost"), {}, [CLEAR]),
        (outcome(503, code="worker_lost", retry=True), {}, []),
        (outcome(422, code="invalid_request", retry=True), {}, [CLEAR]),
        (outcome(0, code="ReadError"), {}, [CLEAR]),
        (outcome(0, code="ReadError"), {"lost_connections": True}, []),
        (outcome(507, code="store_failed", retry=True), {}, []),
    ],
)
def test_what_is_no_clear_answer_is_found(found: Outcome, options: Any, expected: list[str]) -> None:
    assert broken(found, **options) == expected


def test_an_experiment_without_predictions_shows_nothing() -> None:
    report = Report("", [])
    check_outcomes(report, [outcome(201)])
    assert not report.held
    assert not Report("", []).held


def answer(*first: float) -> dict[str, Any]:
    def rows(p: float) -> list[dict[str, Any]]:
        return [{"option": OPTIONS[1], "probability": 1 - p}, {"option": OPTIONS[0], "probability": p}]

    return {"predictions": [{"distribution": rows(p)} for p in first]}


def test_an_answer_is_right_if_all_its_probabilities_are_those_of_before() -> None:
    asked = Known({}, [[0.25, 0.75], [0.5, 0.5]])
    assert asked.right(answer(0.26, 0.5))
    assert not asked.right(answer(0.25, 0.54))
    assert not asked.right(answer(0.25))


def test_the_oracle_says_how_many_adapters_it_could_confuse() -> None:
    asked = [Known({}, [[p, 1 - p]]) for p in (0.1, 0.5, 0.51, 0.1, 0.5, 0.51)]
    assert Oracle(["a", "b", "c"], asked).distinct_pairs == (2, 3)


def test_the_proxy_forwards_late_halts_and_cuts() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(100):
            writer.write(piece)
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, Proxy(port, delay_seconds=0.05) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.own_port)
            writer.write(b"one")
            assert await reader.read(3) == b"one"
            proxy.turn("delay")
            began = time.monotonic()
            writer.write(b"two")
            assert await reader.read(3) == b"two"
            assert time.monotonic() - began >= 0.1  # 0.05 s in each direction
            proxy.turn("half-open")
            writer.write(b"three")
            waiting = asyncio.create_task(reader.read(5))
            assert not (await asyncio.wait([waiting], timeout=0.1))[0]
            proxy.turn("pass")
            assert await waiting == b"three"
            proxy.turn("cut")
            with pytest.raises(ConnectionError):
                await reader.readexactly(1)
            refused, other = await asyncio.open_connection("127.0.0.1", proxy.own_port)
            with pytest.raises(ConnectionError):
                await refused.readexactly(1)
            writer.close()
            other.close()

    asyncio.run(scenario())


def test_a_queue_without_bound_slow_refusals_and_a_dead_probe_are_found() -> None:
    observed = overload.Observed([0.01], ["ReadTimeout"], [3.0, overload.QUEUE + 1.0], [100] * 4 + [200] * 4)
    refused = [Outcome("predict", 429, "queue_full", 0.2, True, None, 0)] * 3
    report = Report("", [])
    overload.judge(report, [outcome(right=True), *refused], observed, 1)
    assert [check.asked for check in report.checks if not check.held] == [
        "queue bounded", "refusals under 50 ms", "memory flat", "/livez answers 200 all along",
    ]  # fmt: skip


@pytest.mark.parametrize(("grows", "held"), [(0.0, True), (1e6, False)])
def test_memory_that_grows_is_found(grows: float, held: bool) -> None:
    report = Report("", [])
    traffic.judge_memory(report, [(float(n), 1e8 + grows * n + 1e5 * (n % 2)) for n in range(100)])
    assert report.held is held


def test_statuses_of_the_server_and_open_connections_are_found() -> None:
    attacks = [("/v1/predict", Attack(name, ())) for name in ("a", "b", "c")]
    report = Report("", [])
    judge(report, attacks, [("400", 0.1), ("500", 0.1), ("closed", 20.0)])
    assert [(check.asked, check.held) for check in report.checks] == [
        ("no 5xx", False), ("no connection hangs", False),
    ]  # fmt: skip


def test_attacks_are_what_they_say() -> None:
    by_name = {attack.name: b"".join(attack.pieces) for attack in [*posts("/v1/predict"), *gets("/livez")]}
    head, _, body = by_name["10000 lists deep"].partition(b"\r\n\r\n")
    assert body == b"[" * 10_000 + b"1" + b"]" * 10_000
    assert b"content-length: %d" % len(body) in head
    assert all(by_name.values())


class Answer:
    def __init__(self, status: int, message: str) -> None:
        self.status_code, self.headers = status, {"date": "now"}
        self._body = {"error": {"code": "unknown_adapter", "message": message, "request_id": str(id(self))}}

    def json(self) -> Any:
        return self._body


def test_answers_that_tell_ids_apart_are_found() -> None:
    def found(*answers: Any) -> list[str]:
        return differences("GET", list(answers), ("adp_1", "adp_2"))

    assert found(Answer(404, "no adapter adp_1"), Answer(404, "no adapter adp_2")) == []
    assert found(Answer(404, "adp_1 is not yours"), Answer(404, "no adapter adp_2"))
    assert found(Answer(403, "no"), Answer(403, "no"))


def test_each_fault_is_a_module() -> None:
    import importlib

    assert all(
        asyncio.iscoroutinefunction(importlib.import_module(f"benchmarks.chaos.{n}").run) for n in FAULTS
    )
