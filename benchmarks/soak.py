"""Measure how a server's resident memory grows while it is given one new adapter after another.

    python -m benchmarks.soak --adapters 300 --out benchmarks/results/soak.md
    python -m benchmarks.soak --pickles     # pickled sizes of records; no server

The benchmark starts `abmll serve` with little memory for adapters. It makes each adapter over HTTP
from four short examples, and asks it once. The server's budget and the worker's should both be full
before the second half: no adapter should add to resident memory after that.
"""

from __future__ import annotations

import argparse
import pickle
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file

from abmll.adaptation.run import Adaptation
from abmll.adaptation.settings import AdaptSettings
from abmll.prediction.settings import PredictSettings
from abmll.text.prompting import LabelledPrompt
from abmll.text.tasks import Example, Query
from benchmarks import common
from benchmarks.http_server import Server
from service.executors.contract import AdaptJob, PredictJob
from service.executors.loading import load_worker
from service.executors.loop import WorkerLoop
from service.executors.messages import Done, LoopEvent, Submit
from service.settings.loading import load_settings

OPTIONS = ("billing", "delivery")
TEXTS = (
    ("Invoice {} has a fee that I did not agree to.", "billing"),
    ("Parcel {} is still not here.", "delivery"),
    ("I paid twice for order {}.", "billing"),
    ("The courier left parcel {} at the wrong house.", "delivery"),
)
INPUT = "You took the money for order {} two times."
# Budgets of the server and of each worker.
BUDGETS = {"adapter-memory-bytes": 1 << 28, "memory-bytes": 1 << 30}
MB, KB = 10**6, 10**3


@dataclass(frozen=True)
class Reading:
    """Resident bytes of the server and of each worker after `adapters` adapters, and gauges.

    `metrics` are the gauges of adapters' bytes in /metrics, by name. `evictions` counts adapters
    that the server's memory has dropped for others.
    """

    adapters: int
    server: int
    workers: tuple[int, ...]
    metrics: Mapping[str, float]
    evictions: int

    @property
    def total(self) -> int:
        """Return the resident bytes of all these processes."""
        return self.server + sum(self.workers)


@dataclass(frozen=True)
class Soak:
    """All readings in order, and one more after all adapters were deleted.

    `tensor_bytes` are the bytes of one stored adapter's tensors. `slots` is how many adapters a
    worker has room for.
    """

    readings: Sequence[Reading]
    deleted: Reading
    tensor_bytes: int
    slots: int


def main() -> None:
    parser = common.parser_of(__doc__)
    parser.add_argument("--adapters", type=int, default=300)
    parser.add_argument("--every", type=int, default=10, help="adapters between two readings")
    for name, default in BUDGETS.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="of `abmll serve`")
    parser.add_argument("--stop-below-gib", type=float, default=6, help="available memory at which to stop")
    parser.add_argument("--pickles", action="store_true", help="only the pickled sizes of records")
    parser.add_argument("--out", type=Path, help="the page to write")
    options = parser.parse_args()
    how = common.how_made("benchmarks.soak")
    text = f"{how}\n\n{pickled_sizes()}" if options.pickles else page(soak(options), how)
    common.show_page(text + "\n", options.out)


def soak(options: argparse.Namespace) -> Soak:
    """Make and ask adapters, and read memory after every few; delete all and read once more."""
    budgets = [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in BUDGETS]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "data"
        with Server(store, budgets) as server, httpx.Client(base_url=server.url, timeout=600) as http:
            made, readings = list[str](), [read(server, http, 0)]
            for number in range(1, options.adapters + 1):
                made.append(make_and_ask(http, number))
                if number % options.every == 0 or number == options.adapters:
                    readings.append(read(server, http, number))
                    print(f"{number} adapters: {readings[-1].total / MB:.0f} MB", flush=True)
                    if psutil.virtual_memory().available < options.stop_below_gib * 2**30:
                        print("stopped: too little memory is left")
                        break
            tensors = load_file(next(store.rglob("*.safetensors"))).values()
            for adapter_id in made:
                http.delete(f"/v1/adapters/{adapter_id}").raise_for_status()
            deleted = read(server, http, len(made))
        plan = re.search(r"(\d+) slots", (store.parent / "data.log").read_text())
    return Soak(readings, deleted, sum(tensor.nbytes for tensor in tensors), int(plan[1]) if plan else 0)


def make_and_ask(http: httpx.Client, number: int) -> str:
    """Make adapter `number`, ask it once, and return its id."""
    support = [{"input": text.format(number), "output": label} for text, label in TEXTS]
    body: dict[str, Any] = {"support": support, "options": OPTIONS, "adapt": {"steps": 1}}
    adapter_id: str = http.post("/v1/adapters", json=body).raise_for_status().json()["id"]
    asked = {"adapter_id": adapter_id, "inputs": [INPUT.format(number)]}
    http.post("/v1/predict", json=asked).raise_for_status()
    return adapter_id


def read(server: Server, http: httpx.Client, adapters: int) -> Reading:
    """Read the processes' memory and /metrics, whose series of one name are added up."""
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(http.get("/metrics").raise_for_status().text):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0) + sample.value
    sizes = {name: size for name, size in totals.items() if re.fullmatch("abmll_.*adapter.*_bytes", name)}
    workers = tuple(process.memory_info().rss for process in server.workers())
    evictions = int(totals["abmll_adapter_evictions_total"])
    return Reading(adapters, server.processes()[0].memory_info().rss, workers, sizes, evictions)


def slope(readings: Sequence[Reading]) -> tuple[float, float]:
    """Return the growth in bytes an adapter over the second half, and its standard error.

    It is the slope of resident bytes by least squares. Both are nan below three readings. The
    errors of neighbouring readings are alike: the true standard error is larger.
    """
    second = [reading for reading in readings if 2 * reading.adapters >= readings[-1].adapters]
    return least_squares([(reading.adapters, reading.total) for reading in second])


def least_squares(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the slope of `points` by least squares, and its standard error; nan for fewer than
    three.
    """
    if len(points) < 3:
        return float("nan"), float("nan")
    x, y = np.array(points, float).T
    x, y = x - x.mean(), y - y.mean()
    growth = x @ y / (x @ x)
    error = np.sqrt(((y - growth * x) ** 2).sum() / (len(x) - 2) / (x @ x))
    return float(growth), float(error)


def page(found: Soak, how: str) -> str:
    """Return the page: findings in a few lines, `how` they were made, and all readings."""
    last, (growth, error) = found.readings[-1], slope(found.readings)
    full = [r for r in found.readings if r.evictions and r.adapters >= found.slots]
    when = f"at {full[0].adapters} adapters, {full[0].total / MB:,.0f} MB" if full else "never"
    kept = last.adapters - last.evictions
    says = [f"`{name}` has {value / kept / KB:,.0f} kB for each" for name, value in last.metrics.items()]
    lines = [
        f"# Resident memory of a server that is given {last.adapters} adapters\n",
        f"- Both budgets full: {when}.",
        f"- At the end: {last.total / MB:,.0f} MB. All adapters deleted: {found.deleted.total / MB:,.0f} MB.",
        f"- Growth in the second half: {growth / KB:,.1f} kB an adapter, standard error {error / KB:,.1f}.",
        f"- One adapter's tensors: {found.tensor_bytes / KB:,.0f} kB. "
        f"Of the {kept} adapters in the server's memory, {', '.join(says)}.",
        f"\n{how} A worker has {found.slots} slots. kB and MB are 10^3 and 10^6 bytes.\n",
        readings_table(found),
    ]
    return "\n".join(lines)


def readings_table(found: Soak) -> str:
    """Return a table in MB: a row for each reading, a column for each worker and each metric."""
    workers = (f"worker {number}" for number in range(len(found.deleted.workers)))
    head = ["adapters", "server MB", *workers, "all", *found.deleted.metrics, "evictions"]
    rows = []
    for reading in [*found.readings, found.deleted]:
        sizes = [reading.server, *reading.workers, reading.total, *reading.metrics.values()]
        name = "all deleted" if reading is found.deleted else reading.adapters
        rows.append([name, *(f"{size / MB:,.0f}" for size in sizes), reading.evictions])
    return common.table(head, rows)


def pickled_sizes() -> str:
    """Pickle what server and worker send each other about an adapter of the shipped posterior.

    `Done` brings the finished adaptation to the server. `PredictJob` names the adapter and has no
    weights. `Submit` takes the job to a worker, with the adapter where the worker does not hold it.
    """
    worker = load_worker(load_settings())
    examples = tuple(Example(text.format(0), label, OPTIONS) for text, label in TEXTS)
    support = tuple(
        LabelledPrompt(worker.served.encoder.encode_example(example), OPTIONS.index(example.output))
        for example in examples
    )
    loop = WorkerLoop(worker)
    loop.submit(Submit(0, AdaptJob("adp_0", support, AdaptSettings(steps=1), seed=0)))
    events: list[LoopEvent] = []
    while not loop.idle:
        events += loop.turn()
    (done,) = (event for event in events if isinstance(event, Done))
    sent = pickle.dumps(done, pickle.HIGHEST_PROTOCOL)
    received: Done = pickle.loads(sent)
    assert isinstance(received.result, Adaptation)
    posterior = received.result.posterior
    prompt = worker.served.encoder.encode(Query(INPUT.format(0), OPTIONS))
    job = PredictJob("adp_0", (prompt,), PredictSettings())
    records = {
        "PredictJob": job,
        "Submit, to a worker that holds the adapter": Submit(1, job),
        "Submit, to a worker that does not": Submit(1, job, posterior),
    }
    sizes = {"Done, of an adaptation": len(sent)}
    sizes |= {name: len(pickle.dumps(record, pickle.HIGHEST_PROTOCOL)) for name, record in records.items()}
    in_tensors = sum(tensor.nbytes for tensor in posterior.to_tensors().values())
    head = ["record", "pickled kB", "the adapter's tensors kB", "ratio"]
    return common.table(head, [[name, n / KB, in_tensors / KB, n / in_tensors] for name, n in sizes.items()])


if __name__ == "__main__":
    main()
