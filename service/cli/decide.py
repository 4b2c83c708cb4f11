"""`abmll decide`: typed questions about the rows of a file."""

from __future__ import annotations

import csv
import json
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abmll.errors import AbmllError
from abmll.text.files import (
    JSON_LINES,
    USUAL,
    Columns,
    cases_by_line,
    queries_by_line,
    separator_of,
)
from abmll.text.text_files import read_text
from service.cli.bars import bar_for
from service.cli.dry_run import REFUSED, OnlyLook, show_dry_run
from service.cli.failures import expected_errors_in_one_line
from service.cli.local import CalibrationFolds, EffortOption, Truncate
from service.cli.local_engine import MODEL_SETTINGS, with_engine
from service.cli.output import AsJson, show
from service.cli.output import out as out_console
from service.cli.remote import ApiKey, Remote, Url, here_or_there
from service.cli.rows import InputColumn, parse_samples
from service.cli.settings_options import with_settings
from service.errors import ServiceError
from service.settings import Settings

if TYPE_CHECKING:
    from service.engine.engine import Engine
    from service.engine.pricing import DryRun
    from service.schemas import DecideRequest, DecideResponse

_PLACE = re.compile(r"(questions|cases|inputs)\[(\d+)\](.*)")
OUT_SUFFIXES = (".csv", ".jsonl")


@with_settings(*MODEL_SETTINGS)
def decide(
    settings: Settings,
    *,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="[CASES] INPUTS",
            exists=True,
            dir_okay=False,
            help="Cases to learn from, if there are any, and rows with `input`: JSON Lines, CSV, TSV, Excel or Parquet.",
        ),
    ],
    questions: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A JSON list of questions, as in POST /v1/decide."),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="Id or name of a stored adapter, which has questions of its own, instead of CASES."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="Write the answers to this .csv or .jsonl, which can be corrected and used as CASES.",
        ),
    ] = None,
    input_column: InputColumn = USUAL.input,
    samples: Annotated[
        str,
        typer.Option(help="Posterior samples, 0 to 64. 0 uses the mean only; `auto` draws until it is sure."),
    ] = "16",
    seed: Annotated[int, typer.Option(min=0, help="The same request and seed give the same answer.")] = 0,
    effort: EffortOption = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Gradient steps, with CASES.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0, help="Learning rate, with CASES.")] = None,
    calibration_folds: CalibrationFolds = None,
    min_confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Abstain below this confidence.")
    ] = None,
    min_margin: Annotated[
        float | None, typer.Option(min=0, max=1, help="Abstain below this margin over the runner-up.")
    ] = None,
    max_mutual_information: Annotated[
        float | None, typer.Option(min=0, help="Abstain above this mutual information, in nats.")
    ] = None,
    min_typicality: Annotated[
        float | None, typer.Option(min=0, max=1, help="Abstain below this typicality of the input.")
    ] = None,
    min_answerable: Annotated[
        float | None, typer.Option(min=0, max=1, help="Abstain below this probability of an answer.")
    ] = None,
    truncate: Truncate = False,
    url: Url = None,
    api_key: ApiKey = None,
    only_look: OnlyLook = False,
    as_json: AsJson = False,
) -> None:
    """Answer typed questions about rows: zero-shot, by cases, or by a stored adapter."""
    with expected_errors_in_one_line(REFUSED if only_look else 1):
        if len(files) > 2:
            raise typer.BadParameter("give one file of inputs, and before it at most one of cases")
        *cases, inputs = files
        if cases and (adapter is not None or questions is None):
            raise typer.BadParameter("CASES need --questions, and make an adapter: leave --adapter out")
        if questions is None and adapter is None:
            raise typer.BadParameter("give --questions, or by --adapter an adapter with questions of its own")
        if out is not None and out.suffix.lower() not in OUT_SUFFIXES:
            raise typer.BadParameter(f"--out {out.name}: the name ends with .csv or .jsonl")
        fits = {
            "effort": effort, "steps": steps, "learning_rate": learning_rate, "calibration_folds": calibration_folds,
        }  # fmt: skip
        bounds = {
            "min_confidence": min_confidence, "min_margin": min_margin, "min_typicality": min_typicality,
            "max_mutual_information": max_mutual_information, "min_answerable": min_answerable,
        }  # fmt: skip
        fields = {
            "model": adapter, "samples": parse_samples(samples), "seed": seed, "truncate": truncate,
            "adapt": _given(fits) or None, "gate": _given(bounds) or None,
        }  # fmt: skip
        columns = Columns(input_column)
        body, places = _read(questions, cases[0] if cases else None, inputs, fields, columns)
        separator = separator_of(inputs, columns)
        from service.cli.tables import decision_tables  # noqa: PLC0415

        with _places_in_files(places):
            if only_look:
                return show_dry_run(
                    settings,
                    url,
                    lambda engine: _dry_run(engine, body, settings),
                    as_json,
                    stored=adapter,
                )
            answer = here_or_there(
                settings,
                url,
                api_key,
                lambda: with_engine(settings, lambda engine: _decide(engine, body, settings)),
                lambda remote: _ask(remote, body),
            )
        if out is not None:
            _write(out, body.inputs, answer, separator)
        shown = answer.model_dump(mode="json")
        show(shown, decision_tables(shown, body.inputs, bar_for(out_console)), as_json)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _read(
    questions: Path | None, cases: Path | None, inputs: Path, fields: Mapping[str, Any], columns: Columns
) -> tuple[DecideRequest, Mapping[str, Sequence[str]]]:
    """Return the request that the files hold, and the places of its questions, cases and inputs.

    Raises `AbmllError` with the place in a file.
    """
    found: dict[str, Any] = {}
    places: dict[str, list[str]] = {}
    texts = [(place, query.input) for place, query in queries_by_line(inputs, columns)]
    if cases is not None:
        is_table = cases.suffix.lower() not in JSON_LINES
        checked: Iterator[object] = (
            queries_by_line(cases, columns) if is_table else cases_by_line(cases, (), columns)
        )
        deque(checked, maxlen=0)  # so that what is wrong with a row is said before anything is loaded
    places["inputs"], found["inputs"] = [place for place, _ in texts], [text for _, text in texts]
    if questions is not None:
        found["questions"] = rows = _questions(questions)
        places["questions"] = [f"{questions.name} question {number}" for number in range(1, len(rows) + 1)]
    from service.api.native.predicting import validated  # noqa: PLC0415
    from service.api.typed_questions import typed_question  # noqa: PLC0415
    from service.schemas import DecideRequest  # noqa: PLC0415

    with _places_in_files(places):
        body = validated(DecideRequest, {**fields, **found})
        if cases is None:
            return body, places
        asked = [typed_question(row) for row in body.questions or () if not isinstance(row, str)]
        taught = list(cases_by_line(cases, asked, columns))
        places["cases"] = [place for place, *_ in taught]
        found["cases"] = [{"input": text, "answers": answers} for _, text, answers in taught]
        return validated(DecideRequest, {**fields, **found}), places


def _questions(path: Path) -> list[Any]:
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise AbmllError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(found, list):
        raise AbmllError(f"{path.name} is not a list of questions, as in POST /v1/decide")
    return found


@contextmanager
def _places_in_files(places: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """Let errors from inside, which name fields of the request, name places in files."""
    try:
        yield
    except ServiceError as error:
        found = _PLACE.match(error.param or "")
        if not found or found[1] not in places:
            raise
        rest = found[3].removeprefix(".")
        at = places[found[1]][int(found[2])]
        raise AbmllError(f"{at}{f' ({rest})' if rest else ''}: {error.message}") from error


async def _dry_run(engine: Engine, body: DecideRequest, settings: Settings) -> DryRun:
    from service.api.decision_requests import placed_errors  # noqa: PLC0415
    from service.api.native.asking import decision_body  # noqa: PLC0415

    asked = await decision_body(body, engine)
    with placed_errors(asked):
        return await engine.dry_run(asked.request(engine.served.base.id, *settings.aliases))


async def _decide(engine: Engine, body: DecideRequest, settings: Settings) -> DecideResponse:
    from service.api.decision_requests import placed_errors  # noqa: PLC0415
    from service.api.native.asking import decision_body  # noqa: PLC0415
    from service.api.native.typed_answers import decide_response  # noqa: PLC0415

    asked = await decision_body(body, engine)
    with placed_errors(asked):
        decided = await engine.decide(asked.request(engine.served.base.id, *settings.aliases))
    return decide_response(decided, asked, "local")


def _ask(remote: Remote, body: DecideRequest) -> DecideResponse:
    from service.schemas import DecideResponse  # noqa: PLC0415

    found = remote.request("POST", "/v1/decide", body.model_dump(mode="json", exclude_unset=True))
    return DecideResponse.model_validate(found, strict=False, extra="ignore")


# ---- the file of answers -------------------------------------------------------------------------


def _write(path: Path, inputs: Sequence[str], answer: DecideResponse, separator: str) -> None:
    """Write the answers to a file of the form of cases, with their confidence and decision.

    `separator` is that of a .csv.
    """
    rows = [(text, result.answers) for text, result in zip(inputs, answer.results, strict=True)]
    if path.suffix.lower() == ".jsonl":
        lines = [
            {
                "input": text,
                "answers": {name: found.answer for name, found in answers.items()},
                "confidence": {name: found.confidence for name, found in answers.items()},
                "decision": {name: found.decision for name, found in answers.items()},
            }
            for text, answers in rows
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        return
    names = list(rows[0][1])
    columns = ["input", *(f"{name}{part}" for name in names for part in ("", "_confidence", "_decision"))]
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise AbmllError(
            f"{path.name} would have two columns {twice!r}: rename the question, or write .jsonl"
        )
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(columns)
        for text, answers in rows:
            cells = [(_cell(a.answer), f"{a.confidence:.4f}", a.decision) for a in answers.values()]
            writer.writerow([text, *(cell for three in cells for cell in three)])


def _cell(answer: str | bool) -> str:
    return str(answer).lower() if isinstance(answer, bool) else answer
