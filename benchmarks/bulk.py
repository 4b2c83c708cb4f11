"""Compare a batch of rows with the same rows sent directly, and kill the server in the middle of
it.

    python -m benchmarks.bulk --rows 200000 --kills 3 --out bulk.md
    python -m benchmarks.bulk --rows 2000 --kills 1 --model ./base --posterior untrained

Both ways have the same server, adapter and rows, one after the other: first the direct way, a
client that sends requests of `--inputs` rows each, `--at-once` of them at a time. Then the batch.
They are compared on the first rows, at most `COMPARED`. A batch of all rows is run with `kill -9`
of the server and its workers at equal parts of them, and each row has to be in the answers once, in
order.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks import common
from benchmarks.http_server import Server
from service.schemas import demo

TEXTS = (
    "You took the money for order {} two times.",
    "Parcel {} is still not here.",
    "The app closes when I open order {}.",
)
SAMPLES = 4
COMPARED = 12_000
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Found:
    """Seconds of both ways with the `compared` rows, and what a batch of all `rows` with kills gave."""

    rows: int
    compared: int
    kills: int
    direct_seconds: float
    batch_seconds: float
    killed_seconds: float
    starts_seconds: float
    answered: int
    in_order: bool
    peak_mb: float

    @property
    def ratio(self) -> float:
        """Return the rows a second of the batch over those of the direct way."""
        return self.direct_seconds / self.batch_seconds

    @property
    def ways(self) -> list[tuple[str, int, float, float]]:
        """Return each way with its rows, its seconds and its rows a second."""
        ways = (
            ("direct", self.compared, self.direct_seconds),
            ("batch", self.compared, self.batch_seconds),
            (f"batch, {self.kills} kills", self.rows, self.killed_seconds),
        )
        return [(name, rows, seconds, rows / seconds) for name, rows, seconds in ways]


def text_of(number: int) -> str:
    """Return the input of a row."""
    return TEXTS[number % len(TEXTS)].format(number)


def write_rows(path: Path, rows: int, adapter_id: str) -> None:
    """Write the file of rows, one input each."""
    with path.open("w") as file:
        for number in range(rows):
            body = {"adapter_id": adapter_id, "inputs": [text_of(number)], "samples": SAMPLES}
            row = {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/predict", "body": body}
            file.write(json.dumps(row) + "\n")


def make_adapter(url: str) -> str:
    """Return the id of the adapter of the demo."""
    task = {key: demo.predict_body()[key] for key in ("support", "options")}
    return str(httpx.post(f"{url}/v1/adapters", json=task, timeout=600).raise_for_status().json()["id"])


async def direct(url: str, rows: int, adapter_id: str, inputs: int, at_once: int) -> float:
    """Return the seconds of all rows by requests of `inputs` rows, `at_once` at a time."""
    starts = iter(range(0, rows, inputs))
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def send() -> None:
            for start in starts:
                texts = [text_of(number) for number in range(start, min(start + inputs, rows))]
                body = {"adapter_id": adapter_id, "inputs": texts, "samples": SAMPLES}
                (await client.post("/v1/predict", json=body)).raise_for_status()

        began = time.perf_counter()
        await asyncio.gather(*(send() for _ in range(at_once)))
        return time.perf_counter() - began


def begin(url: str, path: Path) -> str:
    """Upload the rows and begin a batch of them; return its id."""
    with httpx.Client(base_url=url, timeout=600) as client, path.open("rb") as file:
        form = {"purpose": "batch"}
        uploaded = client.post("/v1/files", data=form, files={"file": ("rows.jsonl", file)})
        body = {"input_file_id": uploaded.raise_for_status().json()["id"], "endpoint": "/v1/predict"}
        return str(client.post("/v1/batches", json=body).raise_for_status().json()["id"])


def wait(
    url: str, batch_id: str, rows: int, memory: list[float] | None = None, server: Server | None = None
) -> str:
    """Wait until `rows` are done, and the batch has ended if these are all; return the output's id."""
    with httpx.Client(base_url=url, timeout=60) as client:
        while True:
            batch = client.get(f"/v1/batches/{batch_id}").raise_for_status().json()
            if memory is not None and server is not None:
                memory.append(server.processes()[0].memory_info().rss / 1e6)
            counts = batch["request_counts"]
            if batch["status"] in {"failed", "cancelled", "expired"} or counts["failed"]:
                raise SystemExit(f"the batch did not go well: {batch}")
            ended = batch["status"] == "completed"
            if ended or (counts["completed"] >= rows and counts["completed"] < counts["total"]):
                return str(batch["abmll"]["output_file_id"])
            time.sleep(POLL_SECONDS)


def custom_ids(url: str, file_id: str) -> Iterator[str]:
    """Yield the ids of the rows in a file of answers."""
    with httpx.stream("GET", f"{url}/v1/files/{file_id}/content", timeout=600) as answer:
        for line in answer.raise_for_status().iter_lines():
            yield json.loads(line)["custom_id"]


def measure(rows: int, kills: int, options: Sequence[str], inputs: int, at_once: int) -> Found:
    """Run both ways, and the batch with kills."""
    memory: list[float] = []
    compared = min(rows, COMPARED)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        data, path = Path(folder) / "data", Path(folder) / "rows.jsonl"
        server = servers.enter_context(Server(data, options))
        adapter_id = make_adapter(server.url)
        write_rows(path, compared, adapter_id)
        asyncio.run(direct(server.url, min(rows, 4 * inputs), adapter_id, inputs, at_once))  # to warm up
        direct_seconds = asyncio.run(direct(server.url, compared, adapter_id, inputs, at_once))
        began = time.perf_counter()
        wait(server.url, begin(server.url, path), compared, memory, server)
        batch_seconds = time.perf_counter() - began
        write_rows(path, rows, adapter_id)
        began, starts = time.perf_counter(), 0.0
        batch_id = begin(server.url, path)
        for number in range(kills):
            wait(server.url, batch_id, rows * (number + 1) // (kills + 1))
            server.kill()
            server = servers.enter_context(Server(data, options))
            starts += server.ready_seconds
        output = wait(server.url, batch_id, rows)
        killed_seconds = time.perf_counter() - began
        found = list(custom_ids(server.url, output))
    in_order = found == [f"row-{number}" for number in range(rows)]
    return Found(
        rows, compared, kills, direct_seconds, batch_seconds, killed_seconds, starts, len(found), in_order,
        max(memory),
    )  # fmt: skip


def page(found: Found, how: str) -> str:
    """Return the page of results."""
    table = "\n".join(
        f"| {name} | {rows:,} | {seconds:.1f} | {rate:.1f} |" for name, rows, seconds, rate in found.ways
    )
    order = "each once and in order" if found.in_order else "NOT each once and in order"
    return f"""# A batch beside the direct way

{how}

Rows of one input each, {SAMPLES} samples.

| way | rows | seconds | rows a second |
|---|---|---|---|
{table}

The batch has {found.ratio:.2f} times the throughput of the direct way. The last row counts the
{found.starts_seconds:.1f} s in which the server started again. After the kills the answers have
{found.answered:,} rows, {order}. The server process had at most {found.peak_mb:,.0f} MB during the batch
without kills.
"""


def main() -> None:
    """Run the benchmark."""
    parser = common.parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--inputs", type=int, default=64, help="inputs of a direct request")
    parser.add_argument("--at-once", type=int, default=12, help="direct requests at a time")
    parser.add_argument("--out", type=Path, help="page to write")
    arguments, options = parser.parse_known_args()
    found = measure(arguments.rows, arguments.kills, options, arguments.inputs, arguments.at_once)
    common.show_page(page(found, common.how_made("benchmarks.bulk")), arguments.out)
    if not found.in_order:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
