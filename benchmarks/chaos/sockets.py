"""Send what no client library sends: slow, huge, deep and malformed requests, to every surface."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from benchmarks.chaos.oracle import make_oracle, still_right
from benchmarks.chaos.report import Report
from benchmarks.chaos.setup import Setup

BODY_SECONDS = 2.0
MOST_SECONDS = 20.0
DEPTH = 10_000
OPTIONS = ["--body-seconds", str(BODY_SECONDS)]
PATHS = (
    "/v1/predict", "/v1/adapters", "/v1/decide", "/v1/names/x", "/v1/adapters/adp_0/calibrate",
    "/v1/adapters/adp_0/feedback", "/v1/adapters/adp_0/diagnose", "/v1/chat/completions", "/v1/completions",
    "/v1/decisions", "/v1/systemone", "/v1/classify", "/v2/models/m/infer", "/v1/files", "/v1/batches", "/nothing",
)  # fmt: skip
GETS = (
    "/livez",
    "/v1/models",
    "/v1/adapters",
    "/v2",
    "/playground",
    "/docs",
    "/metrics",
    "/v1/batches",
    "/v1/files",
)


@dataclass(frozen=True)
class Attack:
    """Bytes that are sent, in pieces with a pause after each; with `shut`, the client then closes
    its side.
    """

    name: str
    pieces: tuple[bytes, ...]
    pause_seconds: float = 0.0
    shut: bool = False


async def run(setup: Setup) -> Report:
    """Send every attack to every path, some at a time."""
    report = Report("Slow, huge, deep and malformed requests", [])
    with setup.server(OPTIONS) as server:
        port = int(server.url.rpartition(":")[2])
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            oracle = await make_oracle(http)
            attacks = [(path, attack) for path in PATHS for attack in posts(path)]
            attacks += [(path, attack) for path in GETS for attack in gets(path)]
            report.about.append(
                f"{len(attacks)} requests to {len(PATHS)} paths with bodies and {len(GETS)} without. `body_seconds` is "
                f"{BODY_SECONDS:g}. A connection that is open after {MOST_SECONDS:g} s hangs."
            )
            gate = asyncio.Semaphore(32)
            life: list[float] = []
            observing = asyncio.create_task(observed(http, life))
            found = await asyncio.gather(*(send(port, attack, gate) for _, attack in attacks))
            observing.cancel()
            judge(report, attacks, found)
            slowest = max(life, default=float("inf"))
            report.check("/livez answers 200 all along", f"slowest {1e3 * slowest:.0f} ms", slowest < 5)
            report.none("answers afterwards are those of before", await still_right(http, oracle))
    traces = setup.log().count("Traceback")
    report.check("no traceback in the log", traces, traces == 0)
    return report


def judge(report: Report, attacks: list[tuple[str, Attack]], found: list[tuple[str, float]]) -> None:
    """Check that none got a 5xx or hung, and add a table of statuses by attack."""
    named = [
        (path, attack.name, status, seconds)
        for (path, attack), (status, seconds) in zip(attacks, found, strict=True)
    ]
    report.none(
        "no 5xx", [f"{name} {path}: {status}" for path, name, status, _ in named if status.startswith("5")]
    )
    hung = [f"{name} {path}: {status}" for path, name, status, seconds in named if seconds >= MOST_SECONDS]
    report.none("no connection hangs", hung)
    rows: list[list[object]] = []
    for name in dict.fromkeys(name for _, name, *_ in named):
        statuses = Counter(status for _, n, status, _ in named if n == name)
        most = max(seconds for _, n, _, seconds in named if n == name)
        shown = ", ".join(f"{status}: {n}" for status, n in statuses.most_common())
        rows.append([name, shown, most])
    report.table("Answers:", ["request", "statuses", "most s"], rows)


def posts(path: str) -> Iterator[Attack]:
    """Yield the attacks that have a body."""
    kind = b"multipart/form-data; boundary=b" if path == "/v1/files" else b"application/json"
    start = b"POST " + path.encode() + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    head = start + b"content-type: " + kind + b"\r\n"

    def whole(name: str, body: bytes, more: bytes = b"") -> Attack:
        return Attack(name, (head + more + b"content-length: %d\r\n\r\n" % len(body) + body,))

    yield Attack("slow loris: a head without end", (head, *[b"x-%d: y\r\n" % i for i in range(40)]), 0.25)
    yield Attack("a body that drips", (head + b"content-length: 900\r\n\r\n", *[b" "] * 40), 0.25)
    yield Attack("a body that does not come", (head + b"content-length: 900\r\n\r\n",))
    yield Attack("a body cut short", (head + b"content-length: 900\r\n\r\n{",), shut=True)
    yield Attack("a header of 1 MB", (head + b"x: " + b"y" * 10**6 + b"\r\n\r\n",))
    yield Attack("10,000 headers", (head + b"".join(b"x-%d: y\r\n" % i for i in range(10_000)) + b"\r\n",))
    yield whole("a body of 2 MB", b'"' + b"a" * (2 << 20) + b'"')
    for name, opened, closed in (("lists", b"[", b"]"), ("objects", b'{"a":', b"}")):
        deep = opened * DEPTH + b"1" + closed * DEPTH
        yield whole(f"{DEPTH} {name} deep", deep)
        for key in (b"inputs", b"messages", b"support", b"questions", b"text", b"note"):
            yield whole(f"a field {DEPTH} {name} deep", b'{"' + key + b'": ' + deep + b"}")
    yield whole(f"{DEPTH} brackets without an end", b"[" * DEPTH)
    for name, body in {
        "no JSON": b"{nonsense",
        "nothing": b"",
        "null": b"null",
        "NaN": b'{"inputs": [NaN], "seed": Infinity}',
        "a number of 5,000 digits": b'{"seed": ' + b"9" * 5000 + b"}",
        "1e999": b'{"seed": 1e999, "samples": -1e999}',
        "no UTF-8": b'{"inputs": ["\xff\xfe"]}',
        "half a surrogate pair": b'{"inputs": ["\\ud800"], "model": "\\ud800"}',
        "NUL": b'{"inputs": ["\\u0000"], "model": "\\u0000", "options": ["\\u0000", "a"]}',
        "bytes 0": b"\0" * 100,
        "one key twice": b'{"inputs": ["a"], "inputs": 3}',
        "100,000 keys": b"{" + b",".join(b'"%d":0' % i for i in range(10**5)) + b"}",
    }.items():
        yield whole(name, body)
    chunked = head + b"transfer-encoding: chunked\r\n\r\n"
    for name, body in {
        "no number": b"zz\r\nabc\r\n",
        "negative": b"-5\r\nabc\r\n",
        "huge": b"ffffffffffffffffff\r\na",
        "too short": b"1\r\nabc\r\n0\r\n\r\n",
        "without an end": b"1\r\n{\r\n",
        "an extension of 100 kB": b"1;" + b"x" * 10**5 + b"\r\n{\r\n0\r\n\r\n",
        "bytes 0": b"\0\0\0\0",
        "trailers of 100 kB": b"1\r\n{\r\n0\r\nx: " + b"y" * 10**5 + b"\r\n\r\n",
    }.items():
        yield Attack(f"bad chunks: {name}", (chunked + body,))
    for name, more in {
        "a negative length": b"content-length: -1\r\n\r\n",
        "a length that is no number": b"content-length: ten\r\n\r\n",
        "a length of 30 digits": b"content-length: " + b"9" * 30 + b"\r\n\r\n",
        "two lengths": b"content-length: 1\r\ncontent-length: 2\r\n\r\n{}",
        "a length and chunks": b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "no host": b"\r\n",
        "an unknown transfer": b"transfer-encoding: rot13\r\n\r\nabc",
        "expect: nonsense": b"expect: nonsense\r\ncontent-length: 2\r\n\r\n{}",
    }.items():
        yield Attack(name, (head + more,))
    yield whole("a body in broken gzip", gzip.compress(b"{}")[:-4], b"content-encoding: gzip\r\n")
    yield Attack("no type", (start + b"content-length: 2\r\n\r\n{}",))


def gets(path: str) -> Iterator[Attack]:
    """Yield the attacks without a body."""
    target, end = path.encode(), b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    for name, line in {
        "a query of 60 kB": b"GET " + target + b"?after=" + b"a" * 60_000 + end,
        "a query with NUL": b"GET " + target + b"?after=%00&limit=%00" + end,
        "a huge limit": b"GET " + target + b"?limit=" + b"9" * 400 + end,
        "a path with NUL": b"GET " + target + b"%00" + end,
        "a path upwards": b"GET " + target + b"/../../../etc/passwd" + end,
        "broken escapes": b"GET " + target + b"%zz%f" + end,
        "raw bytes": b"GET " + target + b"\xff\xfe" + end,
        "a method that nobody has": b"BREW " + target + end,
        "HTTP/0.9": b"GET " + target + b"\r\n",
        "HTTP/9.9": b"GET " + target + b" HTTP/9.9\r\nconnection: close\r\n\r\n",
        "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "only newlines": b"\r\n" * 1000,
        "a line break in a header": b"GET "
        + target
        + b" HTTP/1.1\r\nhost: x\r\nx-request-id: a\x0bb\r\nconnection: close\r\n\r\n",
        "a request id of 60 kB": b"GET "
        + target
        + b" HTTP/1.1\r\nhost: x\r\nx-request-id: "
        + b"a" * 60_000
        + b"\r\nconnection: close\r\n\r\n",
        "an upgrade": b"GET "
        + target
        + b" HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        "a huge range": b"GET "
        + target
        + b" HTTP/1.1\r\nhost: x\r\nrange: bytes="
        + b"0-," * 5000
        + b"\r\nconnection: close\r\n\r\n",
    }.items():
        yield Attack(name, (line,), shut=name in {"TLS", "only newlines", "an upgrade"})


async def send(port: int, attack: Attack, gate: asyncio.Semaphore) -> tuple[str, float]:
    """Send one attack; return the status, or how it ended, and the seconds until it did."""
    async with gate:
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sending = asyncio.create_task(write(writer, attack))
        received = b""
        try:
            async with asyncio.timeout(MOST_SECONDS):
                while piece := await reader.read(1 << 16):
                    received += piece
        except TimeoutError:
            pass
        except ConnectionError:
            received = received or b"? reset"
        finally:
            sending.cancel()
            writer.transport.abort()
        seconds = time.monotonic() - began
        line = received.split(b"\r\n", 1)[0].split()
        return (line[1].decode("latin-1") if len(line) > 1 else "closed"), seconds


async def write(writer: asyncio.StreamWriter, attack: Attack) -> None:
    """Write the pieces of an attack."""
    with contextlib.suppress(ConnectionError):
        for piece in attack.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(attack.pause_seconds)
        if attack.shut and writer.can_write_eof():
            writer.write_eof()


async def observed(http: httpx.AsyncClient, seconds: list[float]) -> None:
    """Ask for life five times a second."""
    while True:
        began = time.monotonic()
        (await http.get("/livez")).raise_for_status()
        seconds.append(time.monotonic() - began)
        await asyncio.sleep(0.2)
