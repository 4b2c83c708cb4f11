"""The command `abmll`. Model code is imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import httpx
import typer
from rich.console import Console, RenderableType

from abmll.errors import AbmllError
from abmll.prediction.settings import PredictSettings, Samples, Thresholds
from abmll.text.files import read_examples, read_rows
from abmll.text.tasks import Example, Query
from service.cli.failures import err, errors_told
from service.cli.peft import export, import_peft
from service.cli.plugins import add_registered_commands
from service.cli.settings_options import with_settings
from service.engine.requests import AdaptOverrides, AdaptRequest, DiagnoseRequest, PredictRequest
from service.gating.confidence import WantedConfidence
from service.gating.records import GateRequest
from service.schemas import demo as demo_task
from service.settings import Settings

if TYPE_CHECKING:
    from service.engine.answers import Diagnosed
    from service.engine.engine import Engine

# Read when torch is first imported: threads of its OpenMP that wait for others then sleep instead of spinning, which on a
# busy 2-core machine took an adaptation from 70 s to 8 s.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

T = TypeVar("T")
app = typer.Typer(
    help="Few-shot adaptation of language models, with uncertainty you can act on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
out = Console()

MODEL_SETTINGS = ("model", "posterior", "quantisation", "device", "threads", "data_dir", "cache_dir")
SupportFile = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="Labelled rows, JSON Lines or CSV.")
]
Options = Annotated[
    list[str] | None, typer.Option("--option", "-o", help="One option to choose from; repeat it.")
]
CalibrationFolds = Annotated[
    int | None,
    typer.Option(min=2, help="Hold out this many parts of the support in turn, to calibrate the adapter."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
@with_settings()
def serve(
    settings: Settings,
    demo: Annotated[
        bool, typer.Option("--demo", help="Once ready, answer a demo request and keep serving.")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings and leave.")
    ] = False,
) -> None:
    """Start the server."""
    if print_config:
        out.print_json(settings.model_dump_json())
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    from service.executors.build import build_executor  # noqa: PLC0415
    from service.metrics import Metrics  # noqa: PLC0415

    # Before the imports that the server itself needs: its workers need them too, and more.
    metrics = Metrics()
    executor = build_executor(settings, metrics, "process", early=True)
    from service.server import serve as run  # noqa: PLC0415

    with errors_told():
        raise typer.Exit(run(settings, executor, metrics, on_ready=_show_demo if demo else None))


@app.command()
def demo(
    url: Annotated[str, typer.Option(help="Address of a running server.")] = "http://127.0.0.1:8000",
) -> None:
    """Send a first adapt-and-predict request to a running server: sort support tickets from 16 examples."""
    if not _show_demo(url):
        raise typer.Exit(1)


def _show_demo(url: str) -> bool:
    """Whether the server at `url` answered the demo request, after showing its answer or what went wrong."""
    from service.cli.tables import prediction_table  # noqa: PLC0415

    out.print(f"16 labelled support tickets and 6 new ones to POST {url}/v1/predict ...")
    try:
        response = httpx.post(f"{url}/v1/predict", json=demo_task.predict_body(), timeout=600)
        answer = response.raise_for_status().json()
    except httpx.HTTPStatusError as error:
        err.print(f"[red]The server refused:[/] {error.response.text}")
        return False
    except httpx.HTTPError as error:
        err.print(f"[red]No answer from {url}:[/] {error}")
        return False
    out.print(prediction_table(answer, demo_task.INPUTS))
    return True


@app.command()
@with_settings(*MODEL_SETTINGS)
def adapt(
    settings: Settings,
    *,
    support: SupportFile,
    option: Options = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Gradient steps.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0, help="Learning rate.")] = None,
    calibration_folds: CalibrationFolds = None,
    seed: Annotated[int, typer.Option(min=0, help="Same support and seed, same adapter.")] = 0,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut inputs that do not fit the context.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Adapt to labelled rows in this process, and keep the adapter in the data folder."""
    with errors_told():
        overrides = AdaptOverrides(steps, learning_rate)
        examples = _read_support(support, option)
        request = AdaptRequest(examples, overrides, seed, truncate, calibration_folds=calibration_folds)
        obtained = _with_engine(settings, lambda engine: engine.create_adapter(request))
        from service.api.native.rendering import adapter_object  # noqa: PLC0415
        from service.cli.tables import adapter_table  # noqa: PLC0415

        answer = adapter_object(obtained.adapter.manifest).model_dump(mode="json")
        _show(answer, adapter_table(answer), as_json)


@app.command()
@with_settings(*MODEL_SETTINGS)
def predict(
    settings: Settings,
    *,
    inputs: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="Rows with `input`, JSON Lines or CSV.")
    ],
    support: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Labelled rows to adapt to.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Id of an adapter made before, instead of --support.")
    ] = None,
    option: Options = None,
    samples: Annotated[
        str,
        typer.Option(help="Posterior samples, 0 to 64; 0 for the mean only, `auto` for as many as it takes."),
    ] = "16",
    seed: Annotated[int, typer.Option(min=0, help="Same request and seed, same answer.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Gradient steps, with --support.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="Learning rate, with --support.")
    ] = None,
    calibration_folds: CalibrationFolds = None,
    min_confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Abstain below this confidence.")
    ] = None,
    min_margin: Annotated[
        float | None, typer.Option(min=0, max=1, help="Abstain where the runner-up is closer than this.")
    ] = None,
    max_mutual_information: Annotated[
        float | None, typer.Option(min=0, help="Abstain above this information, in nats.")
    ] = None,
    min_typicality: Annotated[
        float | None, typer.Option(min=0, max=1, help="Abstain where less like the examples than this.")
    ] = None,
    max_semantic_entropy: Annotated[
        float | None, typer.Option(min=0, help="For free text: abstain above this entropy of meanings.")
    ] = None,
    min_logprob_per_token: Annotated[
        float | None, typer.Option(max=0, help="For free text: abstain below this log-probability.")
    ] = None,
    confidence: Annotated[
        WantedConfidence, typer.Option(help="Kind of confidence; by default calibrated where it can be.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest free-text answer.")] = 32,
    answers_per_sample: Annotated[
        int, typer.Option(min=1, max=64, help="Free-text answers that each sample writes.")
    ] = 1,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut inputs that do not fit the context.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Answer rows in this process, with an adapter made before or one made from labelled rows."""
    with errors_told():
        from service.api.native.rendering import predict_response  # noqa: PLC0415
        from service.cli.tables import prediction_table  # noqa: PLC0415

        if (support is None) == (adapter is None):
            raise typer.BadParameter("give exactly one of --support and --adapter")
        source: AdaptRequest | str = str(adapter)
        if support is not None:
            overrides = AdaptOverrides(steps, learning_rate)
            examples = _read_support(support, option)
            source = AdaptRequest(examples, overrides, seed, truncate, calibration_folds=calibration_folds)
        queries = _read_queries(inputs, option)
        gate = Thresholds(
            min_confidence, min_margin, max_mutual_information, max_semantic_entropy, min_logprob_per_token,
            min_typicality,
        )  # fmt: skip
        asked = PredictSettings(_read_samples(samples), seed, max_new_tokens, answers_per_sample)
        request = PredictRequest(source, queries, asked, GateRequest(gate), confidence, truncate)
        answered = _with_engine(settings, lambda engine: engine.predict(request))
        answer = predict_response(answered, seed, "local").model_dump(mode="json")
        _show(answer, prediction_table(answer, [query.input for query in queries]), as_json)


@app.command()
@with_settings(*MODEL_SETTINGS)
def diagnose(
    settings: Settings,
    *,
    source: Annotated[
        str,
        typer.Argument(metavar="ADAPTER|FILE", help="Id of an adapter, or labelled rows to adapt to first."),
    ],
    option: Options = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Parts held out in turn; by default one an example, or 8.")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, max=64, help="Posterior samples of each answer.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the adaptation, with a file.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Estimate how good an adapter is from its own support: adapted to some examples, asked for the others."""
    with errors_told():
        from service.api.native.rendering import diagnose_response  # noqa: PLC0415
        from service.cli.tables import diagnosis_table  # noqa: PLC0415

        support = _read_support(Path(source), option) if Path(source).is_file() else None

        async def work(engine: Engine) -> Diagnosed:
            adapter = source
            if support is not None:
                obtained = await engine.create_adapter(AdaptRequest(support, seed=seed))
                adapter = obtained.adapter.manifest.id
            return await engine.diagnose(DiagnoseRequest(adapter, folds, samples))

        answer = diagnose_response(_with_engine(settings, work), "local").model_dump(mode="json")
        _show(answer, diagnosis_table(answer), as_json)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the base models of the catalogue and the posteriors that ship."""
    from model_store.posteriors import shipped_posteriors  # noqa: PLC0415
    from model_store.pretrained.catalogue import CATALOGUE, DEFAULT_BASE  # noqa: PLC0415
    from service.cli.tables import models_table  # noqa: PLC0415

    rows = [
        {"name": base.name, "default": base.name == DEFAULT_BASE, "quantisation": base.quantisation}
        for base in CATALOGUE.values()
    ]
    answer = {"bases": rows, "posteriors": list(shipped_posteriors())}
    _show(answer, models_table(answer), as_json)


app.command()(export)
app.command("import-peft")(import_peft)
add_registered_commands(app)


def _read_support(path: Path, options: list[str] | None) -> tuple[Example, ...]:
    return tuple(replace(e, options=e.options or tuple(options or ())) for e in read_examples(path))


def _read_queries(path: Path, options: list[str] | None) -> tuple[Query, ...]:
    queries = []
    for number, row in enumerate(read_rows(path), start=1):
        if not isinstance(row.get("input"), str):
            raise AbmllError(f"{path.name} row {number} needs the text `input`")
        queries.append(Query(row["input"], tuple(row.get("options") or options or ())))
    return tuple(queries)


def _read_samples(text: str) -> Samples:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) > 64:
        raise typer.BadParameter("--samples is a number from 0 to 64, or auto")
    return int(text)


def _with_engine(settings: Settings, work: Callable[[Engine], Coroutine[Any, Any, T]]) -> T:
    from service.engine.build import build_engine  # noqa: PLC0415
    from service.executors.build import build_executor  # noqa: PLC0415
    from service.metrics import Metrics  # noqa: PLC0415

    async def run() -> T:
        metrics = Metrics()
        engine = build_engine(settings, build_executor(settings, metrics, "inline"), metrics)
        try:
            await engine.start()
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


def _show(answer: dict[str, Any], table: RenderableType, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(answer, ensure_ascii=False))
    else:
        out.print(table)
