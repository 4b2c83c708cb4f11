"""Compare the prices of requests with the time that they take.

    python -m benchmarks.prices --data ../shared/data --threads 1 --clock processor

A worker is loaded as a server loads it: it measures its speed, and cuts work into units. Each case
is adapted and predicted by it, alone. Texts are inputs of one task, joined where a case has longer
ones. With `--clock processor`, both the speed and the requests are timed by the processor time of
this process. On one thread, that is the time on an idle machine, also where others use its cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from typing import Any
from unittest.mock import patch

import torch

from abmll.adaptation.run import Adaptation
from abmll.speed import measure_speed
from abmll.text.files import read_task
from abmll.text.tasks import Example, Query
from benchmarks import common
from service.engine.admission import admit_adapt, admit_predict
from service.engine.pricing import price_of
from service.engine.requests import AdaptOverrides, AdaptRequest, PredictRequest
from service.executors.contract import Job
from service.executors.loading import load_worker
from service.executors.worker import ModelWorker
from service.settings import Settings

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
BOUND = 0.3


@dataclass(frozen=True)
class Case:
    """One request: `examples` and `inputs` of about `characters` characters each.

    `options` are the classes; None leaves those of the task, and an empty tuple asks for free text.
    """

    name: str
    examples: int
    inputs: int
    characters: int = 0
    options: tuple[str, ...] | None = None
    steps: int | None = None
    samples: int = 16


def main() -> None:
    parser = common.arguments(__doc__, repeats=1, data=True)
    parser.add_argument("--task", default="ag_news")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--only", nargs="*", default=[], help="words of the names of cases to run")
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    measured = partial(measure_speed, clock=clock)
    with patch("service.executors.loading.measure_speed", measured):
        worker = load_worker(Settings(threads=options.threads, posterior=options.posterior))
    assert isinstance(worker, ModelWorker)
    started = time.perf_counter()
    measured(worker._model)
    start_seconds = time.perf_counter() - started
    task = read_task(options.data / options.task)
    rows: list[list[Any]] = []
    for case in cases(task.train, quick=options.quick):
        if not options.only or any(word in case.name for word in options.only):
            rows += [[case.name, *row] for row in run(worker, case, task.train, task.test, clock)]
            report(
                rows, start_seconds, options, worker._model.backbone.dtype
            )  # a run that is ended keeps these


def report(rows: Sequence[Sequence[Any]], start_seconds: float, options: Any, dtype: torch.dtype) -> None:
    """Write the page of results, of the cases that were run so far."""
    inside = sum(abs(row[-1] - 1) <= BOUND for row in rows)
    about = [
        f"Texts of {options.task}; the served settings but for the steps that a case names. Prices are those of the engine, "
        f"from the speed that the worker measured at its start. Clock: {options.clock} time. {inside} of {len(rows)} prices "
        f"are within {BOUND:.0%} of the time measured. Measuring the speed takes {start_seconds:.1f} s of wall time here.",
    ]
    head = ["request", "part", "tokens", "price s", "measured s", "price / measured"]
    data = {"rows": [dict(zip(head, row, strict=True)) for row in rows], "start_seconds": start_seconds}
    tables = [common.table(head, rows)]
    common.write_results("prices", "Prices of requests", about, tables, data, options, dtype)


def cases(train: Sequence[Example], *, quick: bool) -> Iterator[Case]:
    """Yield the spread of requests; with `quick`, its smallest."""
    if quick:
        yield Case("2 short examples, 1 input", 2, 1, steps=1, samples=2)
        return
    words = [word.strip(".,") for example in train for word in example.input.split() if word.isalpha()]
    names = list(dict.fromkeys(words))
    many = tuple(f"{a} {b}" for a, b in zip(names[:128], names[128:256], strict=True))
    texts = tuple(" ".join(islice(words, start, start + 500)) for start in (0, 500))
    yield Case("16 short examples, 1 input", 16, 1)
    yield Case("16 short examples, 64 inputs", 16, 64)
    yield Case("16 examples of 1,000 characters, 2 steps; 4 inputs", 16, 4, 1000, steps=2)
    yield Case("4 examples of 4,000 characters, 2 steps; 1 input, S = 8", 4, 1, 4000, steps=2, samples=8)
    yield Case("16 examples of 128 options, 2 steps; 1 input", 16, 1, options=many, steps=2)
    yield Case(
        "2 examples of two 500-word options, 2 steps; 1 input, S = 4", 2, 1, options=texts, steps=2, samples=4
    )
    yield Case("16 examples of free text, 4 inputs", 16, 4, options=())
    yield Case("2 examples of 28,000 characters, 1 step; 1 input, S = 1", 2, 1, 28_000, steps=1, samples=1)


def run(
    worker: ModelWorker,
    case: Case,
    train: Sequence[Example],
    test: Sequence[Example],
    clock: Callable[[], float],
) -> Iterator[list[Any]]:
    """Yield the rows of the adaptation and of the prediction: tokens, price, seconds, their ratio."""
    settings = Settings(deadline_seconds=1e6)
    support = tuple(islice(_examples(train, case), case.examples))
    queries = tuple(Query(example.input) for example in islice(_examples(test, case), case.inputs))
    new = AdaptRequest(support, AdaptOverrides(steps=case.steps))
    adaptation = admit_adapt(new, worker.served, settings)
    asked = PredictRequest(new, queries)
    asked = replace(asked, settings=replace(asked.settings, samples=case.samples))
    prediction = admit_predict(asked, worker.served, settings, support, own_temperature=False)
    price = price_of(worker.served, adaptation, prediction)
    assert price is not None
    made, seconds = _timed(worker, adaptation.job, None, clock)
    tokens = sum(example.prompt.tokens for example in adaptation.examples)
    yield ["adapt", tokens, price.adapt_seconds, seconds, price.adapt_seconds / seconds]
    assert isinstance(made, Adaptation)
    _, seconds = _timed(worker, prediction.job(adaptation.job.adapter_id), made.posterior, clock)
    tokens = sum(prompt.tokens for prompt in prediction.prompts)
    yield ["predict", tokens, price.predict_seconds, seconds, price.predict_seconds / seconds]


def _examples(rows: Sequence[Example], case: Case) -> Iterator[Example]:
    """Yield examples of the case, with texts that are joined until they are long enough."""
    rest = cycle(rows)
    for number, first in enumerate(rest):
        text = first.input
        while len(text) < case.characters:
            text += f" {next(rest).input}"
        text = text[: case.characters] if case.characters else text
        options = first.options if case.options is None else case.options
        output = options[number % len(options)] if options else first.output
        yield Example(text, output, options)


def _timed(worker: ModelWorker, job: Job, adapter: Any, clock: Callable[[], float]) -> tuple[Any, float]:
    """Return the result of the job, and the seconds that the worker took for it."""
    started = clock()
    run = worker.begin(job, adapter)
    while not run.done:
        worker.advance([run])
    result = run.result()
    worker.finish(run)
    return result, clock() - started


if __name__ == "__main__":
    main()
