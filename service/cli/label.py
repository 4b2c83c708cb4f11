"""`abmll label`: answers every row of a file of any size, here or by a server."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from abmll.errors import AbmllError
from abmll.prediction.settings import PredictSettings, Thresholds
from abmll.text.files import USUAL, Columns, rows_by_line, separator_of
from abmll.text.tasks import Query, check_options
from service.cli.dry_run import REFUSED, OnlyLook, show_dry_run
from service.cli.failures import expected_errors_in_one_line
from service.cli.labelled import Answer, LabelledFile
from service.cli.local import Truncate
from service.cli.local_engine import MODEL_SETTINGS, with_engine
from service.cli.output import err
from service.cli.remote import ApiKey, Remote, Url, here_or_there
from service.cli.rows import InputColumn, parse_samples
from service.cli.settings_options import with_settings
from service.engine.requests import PredictRequest
from service.errors import ServiceError
from service.gating.records import GateRequest
from service.settings import Settings

if TYPE_CHECKING:
    from service.engine.engine import Engine
    from service.engine.pricing import DryRun

GROUP_ROWS = 32
"""Rows of a request."""
LOOKED_AT_ROWS = 256
"""Rows by which a dry run estimates the tokens and the seconds of all."""
REQUESTS_AT_ONCE = 2
"""So that one request is prepared while another is answered."""
INTERRUPTED = 130

Answering: TypeAlias = Callable[[Sequence[Query]], Awaitable[Sequence[Answer]]]
"""Answers the rows of a request. Raises `RowRefusedError` and `ServiceError`."""


class RowRefusedError(Exception):
    """A row of a request, by its index, cannot be answered."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


@dataclass(frozen=True)
class _Row:
    place: str
    fields: Mapping[str, Any]
    query: Query


@with_settings(*MODEL_SETTINGS)
def label(
    settings: Settings,
    *,
    rows: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help="Rows with `input`: JSON Lines, CSV, TSV, Excel or Parquet."
        ),
    ],
    adapter: Annotated[str, typer.Option(help="Id or name of a stored adapter.")],
    out: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="The .csv, .tsv or .jsonl to write; one that is there goes on. Needed but for --dry-run.",
        ),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    input_column: InputColumn = USUAL.input,
    samples: Annotated[
        str,
        typer.Option(help="Posterior samples, 0 to 64. 0 uses the mean only; `auto` draws until it is sure."),
    ] = "16",
    seed: Annotated[int, typer.Option(min=0, help="The same rows and seed give the same answers.")] = 0,
    min_confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Abstain below this confidence.")
    ] = None,
    truncate: Truncate = False,
    only_look: OnlyLook = False,
) -> None:
    """Answer every row of a file, and write the answers beside the rows.

    Rows may be millions: they are read and written one after the other. Interrupted, the same
    command goes on where the file --out ends.
    """
    with expected_errors_in_one_line(REFUSED if only_look else 1):
        columns = Columns(input_column)
        total, names = _check(rows, columns)
        if only_look:
            asked = PredictSettings(parse_samples(samples), seed)
            gate_asked = GateRequest(Thresholds(min_confidence))
            request = PredictRequest(None, (), asked, gate_asked, truncate=truncate, model=adapter)
            return show_dry_run(
                settings,
                url,
                lambda engine: _look(engine, rows, columns, total, request),
                as_json=False,
                stored=adapter,
            )
        if out is None:
            raise typer.BadParameter("name the file to write by --out")
        file = LabelledFile(out, names, separator_of(rows, columns))
        try:
            run = _Labelling(rows, columns, file, total)
            fields = {"samples": parse_samples(samples), "seed": seed, "truncate": truncate}
            gate = {} if min_confidence is None else {"gate": {"min_confidence": min_confidence}}
            here_or_there(
                settings,
                url,
                api_key,
                lambda: with_engine(
                    settings, lambda engine: _here(run, engine, adapter, fields, min_confidence)
                ),
                lambda remote: asyncio.run(_by_server(run, remote, {"model": adapter, **fields, **gate})),
            )
        except KeyboardInterrupt as error:
            err.print(
                f"[yellow]interrupted:[/] {out.name} is whole; the same command goes on", highlight=False
            )
            raise typer.Exit(INTERRUPTED) from error
        finally:
            file.close()


def _check(path: Path, columns: Columns) -> tuple[int, list[str]]:
    """Return the number of rows and the fields that any has. Raises `AbmllError` for any bad row."""
    names: dict[str, None] = {}
    total = 0
    for place, fields, query in rows_by_line(path, columns):
        if query.options:
            try:
                check_options(query.options)
            except AbmllError as error:
                raise AbmllError(f"{place}: {error}") from error
        names.update(dict.fromkeys(fields))
        total += 1
    return total, list(names)


async def _look(engine: Engine, path: Path, columns: Columns, total: int, request: PredictRequest) -> DryRun:
    """Return the dry run of all rows: of `LOOKED_AT_ROWS` of them at even distances, times the
    others.
    """
    step = max(1, total // LOOKED_AT_ROWS)
    looked_at = list(itertools.islice(rows_by_line(path, columns), 0, None, step))[:LOOKED_AT_ROWS]
    found: list[DryRun] = []
    for start in range(0, len(looked_at), GROUP_ROWS):
        group = looked_at[start : start + GROUP_ROWS]
        with _named_rows([place for place, *_ in group]), _refused_rows():
            found.append(await engine.dry_run(replace(request, queries=tuple(q for *_, q in group))))
    more = total / len(looked_at)
    prices = [one.price for one in found if one.price is not None]
    seconds = sum(price.predict_seconds for price in prices) * more
    shared = {one.options for one in found}
    return replace(
        found[0],
        inputs=total,
        options=shared.pop() if len(shared) == 1 else (),
        tokens=round(sum(one.tokens for one in found) * more),
        longest_tokens=max(one.longest_tokens for one in found),
        price=replace(prices[0], predict_seconds=seconds) if prices else None,
        refusal=next((one.refusal for one in found if one.refusal is not None), None),
    )


class _Labelling:
    """The rows that are left, and the file of answers."""

    def __init__(self, path: Path, columns: Columns, file: LabelledFile, total: int) -> None:
        """Begin behind the rows that the file has.

        Raises `AbmllError` where these are not the first of `path`.
        """
        self._file, self.total, self.done = file, total, 0
        self._adapter_id: str | None = None
        self._left = (_Row(*found) for found in rows_by_line(path, columns))
        for written in file.rows():
            row = next(self._left, None)
            if row is None or row.query.input != written.get(columns.input):
                place = "has more rows" if row is None else f"has another input than {row.place}"
                raise AbmllError(f"the file of answers {place}: name another --out")
            self._adapter_id = str(written["adapter_id"])
            self.done += 1

    async def run(self, answer: Answering) -> None:
        """Answer the rows that are left. Raises `AbmllError` and `ServiceError`."""
        began, before = time.monotonic(), self.done
        columns = (
            TextColumn("rows"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        pending: deque[tuple[list[_Row], asyncio.Task[Sequence[Answer]]]] = deque()
        with Progress(*columns, console=err, transient=True) as bar:
            task = bar.add_task("", total=self.total, completed=self.done, rate="")
            try:
                while True:
                    while len(pending) < REQUESTS_AT_ONCE and (group := self._next_group()):
                        work = asyncio.ensure_future(answer([row.query for row in group]))
                        pending.append((group, work))
                    if not pending:
                        break
                    group, work = pending[0]
                    await self._write(group, work)
                    pending.popleft()
                    rate = (self.done - before) / max(1e-6, time.monotonic() - began)
                    bar.update(task, completed=self.done, rate=f"{rate:.1f} a second")
            finally:
                for _, work in pending:
                    work.cancel()
                await asyncio.gather(*(work for _, work in pending), return_exceptions=True)
        seconds = time.monotonic() - began
        err.print(f"{self.done - before} rows in {seconds:.1f} s; {self.done} of {self.total} are labelled")

    def _next_group(self) -> list[_Row]:
        return list(itertools.islice(self._left, GROUP_ROWS))

    async def _write(self, group: Sequence[_Row], work: Awaitable[Sequence[Answer]]) -> None:
        with _named_rows([row.place for row in group]):
            answers = await work
        own = answers[0].adapter_id
        if self._adapter_id not in {None, own}:
            message = f"the file of answers is by the adapter {self._adapter_id}, this one is {own}"
            raise AbmllError(f"{message}: name another --out")
        self._adapter_id = own
        await asyncio.to_thread(self._file.write, [row.fields for row in group], answers)
        self.done += len(group)


# ---- who answers ---------------------------------------------------------------------------------


async def _here(
    run: _Labelling, engine: Engine, adapter: str, fields: Mapping[str, Any], min_confidence: float | None
) -> None:
    settings = PredictSettings(fields["samples"], fields["seed"])
    gate = GateRequest(Thresholds(min_confidence))

    async def answer(queries: Sequence[Query]) -> Sequence[Answer]:
        request = PredictRequest(
            None, tuple(queries), settings, gate, truncate=fields["truncate"], model=adapter
        )
        with _refused_rows():
            found = await engine.predict(request)
        return [
            Answer(
                row.decision,
                row.prediction.predictive.answer,
                round(row.confidence.value, 6),
                found.adapter.manifest.id,
            )
            for row in found.predictions
        ]

    await run.run(answer)


async def _by_server(run: _Labelling, remote: Remote, fields: Mapping[str, Any]) -> None:
    async def answer(queries: Sequence[Query]) -> Sequence[Answer]:
        inputs = [{"input": q.input, "options": list(q.options)} if q.options else q.input for q in queries]
        with _refused_rows():
            found = await asyncio.to_thread(
                remote.request, "POST", "/v1/predict", {**fields, "inputs": inputs}
            )
        return [
            Answer(row["decision"], row["answer"], round(row["confidence"], 6), found["adapter_id"])
            for row in found["predictions"]
        ]

    await run.run(answer)


@contextmanager
def _refused_rows() -> Iterator[None]:
    """Turn errors about one input into `RowRefusedError`."""
    try:
        yield
    except ServiceError as error:
        if (index := _index(error.param)) is None:
            raise
        raise RowRefusedError(index, error.message) from error


@contextmanager
def _named_rows(places: Sequence[str]) -> Iterator[None]:
    """Turn `RowRefusedError` into `AbmllError` with the place of the row."""
    try:
        yield
    except RowRefusedError as error:
        raise AbmllError(f"{places[error.index]}: {error}") from error


def _index(param: Any) -> int | None:
    """Return the index of the input that an error names, such as `inputs[3].options`."""
    number = str(param).removeprefix("inputs[").partition("]")[0]
    return int(number) if str(param).startswith("inputs[") and number.isdecimal() else None
