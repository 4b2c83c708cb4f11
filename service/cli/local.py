"""`abmll adapt`, `abmll predict` and `abmll diagnose`: in this process, or by a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias
from urllib.parse import quote

import typer

from abmll.adaptation.settings import Effort
from abmll.prediction.settings import PredictSettings, Thresholds
from abmll.text.files import USUAL, Columns
from service.cli.adapting import adapted_here, adapted_there
from service.cli.dry_run import REFUSED, OnlyLook, show_dry_run
from service.cli.failures import expected_errors_in_one_line
from service.cli.local_engine import MODEL_SETTINGS, with_engine
from service.cli.output import AsJson, show
from service.cli.remote import ApiKey, Remote, Url, here_or_there, read
from service.cli.rows import (
    InferOptions,
    InputColumn,
    Options,
    OutputColumn,
    is_file,
    parse_samples,
    read_queries,
    read_support,
)
from service.cli.settings_options import with_settings
from service.engine.requests import AdaptOverrides, AdaptRequest, DiagnoseRequest, PredictRequest
from service.gating.records import USUAL_DELTA, GateRequest
from service.settings import Settings

if TYPE_CHECKING:
    from service.engine.answers import Diagnosed
    from service.engine.engine import Engine

CalibrationFolds: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Number of parts of the support, each held out once, from which to calibrate the adapter.",
    ),
]
EffortOption: TypeAlias = Annotated[
    Effort | None,
    typer.Option(help="Work of the fit: no gradient step, two, or all that the posterior was trained for."),
]
Truncate: TypeAlias = Annotated[
    bool, typer.Option("--truncate", help="Cut inputs that do not fit the context.")
]


@with_settings(*MODEL_SETTINGS)
def adapt(
    settings: Settings,
    *,
    support: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help="Labelled rows: JSON Lines, CSV, TSV, Excel or Parquet."
        ),
    ],
    option: Options = None,
    infer_options: InferOptions = False,
    input_column: InputColumn = USUAL.input,
    output_column: OutputColumn = USUAL.output,
    effort: EffortOption = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Gradient steps.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0, help="Learning rate.")] = None,
    calibration_folds: CalibrationFolds = None,
    seed: Annotated[int, typer.Option(min=0, help="The same support and seed give the same adapter.")] = 0,
    truncate: Truncate = False,
    url: Url = None,
    api_key: ApiKey = None,
    only_look: OnlyLook = False,
    as_json: AsJson = False,
) -> None:
    """Adapt to labelled rows, and store the adapter in the data folder, or at a server."""
    with expected_errors_in_one_line(REFUSED if only_look else 1):
        columns = Columns(input_column, output_column)
        overrides = AdaptOverrides(effort, steps, learning_rate)
        examples = read_support(support, option, columns, infer=infer_options)
        request = AdaptRequest(examples, overrides, seed, truncate, calibration_folds=calibration_folds)
        if only_look:
            return show_dry_run(settings, url, lambda engine: engine.dry_run(request), as_json, stored=None)
        from service import schemas  # noqa: PLC0415
        from service.api.native.rendering import adapter_object  # noqa: PLC0415
        from service.cli.bodies import adapt_body  # noqa: PLC0415
        from service.cli.tables import adapter_table  # noqa: PLC0415

        def here() -> dict[str, Any]:
            obtained = with_engine(settings, lambda engine: adapted_here(engine, request))
            return adapter_object(obtained.adapter.manifest).model_dump(mode="json")

        def there(remote: Remote) -> dict[str, Any]:
            return read(schemas.Adapter, adapted_there(remote, adapt_body(request)))

        answer = here_or_there(settings, url, api_key, here, there)
        show(answer, adapter_table(answer), as_json)


@with_settings(*MODEL_SETTINGS)
def predict(
    settings: Settings,
    *,
    inputs: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help="Rows with `input`: JSON Lines, CSV, TSV, Excel or Parquet."
        ),
    ],
    support: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Labelled rows to adapt to.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Id or name of a stored adapter, instead of --support.")
    ] = None,
    option: Options = None,
    infer_options: InferOptions = False,
    input_column: InputColumn = USUAL.input,
    output_column: OutputColumn = USUAL.output,
    samples: Annotated[
        str,
        typer.Option(
            help="Posterior samples, 0 to 64. 0 uses the mean only; `auto` stops when the gate is decided."
        ),
    ] = "16",
    seed: Annotated[int, typer.Option(min=0, help="The same request and seed give the same answer.")] = 0,
    effort: EffortOption = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Gradient steps, with --support.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="Learning rate, with --support.")
    ] = None,
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
    max_semantic_entropy: Annotated[
        float | None, typer.Option(min=0, help="For free text: abstain above this entropy of meanings.")
    ] = None,
    min_logprob_per_token: Annotated[
        float | None, typer.Option(max=0, help="For free text: abstain below this log-probability.")
    ] = None,
    target_error: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=0.5, help="Abstain below the confidence that is certified for this error."
        ),
    ] = None,
    delta: Annotated[
        float,
        typer.Option(min=1e-6, max=0.5, help="Probability that the certificate of --target-error is wrong."),
    ] = USUAL_DELTA,
    target_coverage: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Abstain below the confidence that this part of inputs reaches."),
    ] = None,
    confidence: Annotated[
        Literal["predictive", "calibrated"] | None,
        typer.Option(help="Kind of confidence; by default calibrated where the adapter has one."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a free-text answer.")] = 32,
    answers_per_sample: Annotated[
        int, typer.Option(min=1, max=64, help="Free-text answers that each sample writes.")
    ] = 1,
    truncate: Truncate = False,
    url: Url = None,
    api_key: ApiKey = None,
    only_look: OnlyLook = False,
    as_json: AsJson = False,
) -> None:
    """Answer rows with a stored adapter, or one that is made from labelled rows."""
    with expected_errors_in_one_line(REFUSED if only_look else 1):
        from service import schemas  # noqa: PLC0415
        from service.api.native.rendering import predict_response  # noqa: PLC0415
        from service.cli.bodies import predict_body  # noqa: PLC0415
        from service.cli.tables import prediction_table  # noqa: PLC0415

        if (support is None) == (adapter is None):
            raise typer.BadParameter("give exactly one of --support and --adapter")
        source, columns = None, Columns(input_column, output_column)
        if support is not None:
            overrides = AdaptOverrides(effort, steps, learning_rate)
            examples = read_support(support, option, columns, infer=infer_options)
            source = AdaptRequest(examples, overrides, seed, truncate, calibration_folds=calibration_folds)
        queries = read_queries(inputs, option, columns)
        thresholds = Thresholds(
            min_confidence, min_margin, max_mutual_information, max_semantic_entropy, min_logprob_per_token,
            min_typicality,
            min_answerable,
        )  # fmt: skip
        if target_error is not None and target_coverage is not None:
            raise typer.BadParameter("give one of --target-error and --target-coverage")
        if support is not None and (target_error, target_coverage) != (None, None):
            raise typer.BadParameter("it is a stored adapter that is calibrated: give --adapter")
        asked = PredictSettings(parse_samples(samples), seed, max_new_tokens, answers_per_sample)
        gate = GateRequest(thresholds, target_error, delta, target_coverage)
        request = PredictRequest(source, queries, asked, gate, confidence, truncate, adapter)
        if only_look:
            return show_dry_run(
                settings, url, lambda engine: engine.dry_run(request), as_json, stored=adapter
            )

        def here() -> dict[str, Any]:
            answered = with_engine(settings, lambda engine: engine.predict(request))
            return predict_response(answered, seed, "local").model_dump(mode="json")

        def there(remote: Remote) -> dict[str, Any]:
            return read(schemas.PredictResponse, remote.request("POST", "/v1/predict", predict_body(request)))

        answer = here_or_there(settings, url, api_key, here, there)
        show(answer, prediction_table(answer, [query.input for query in queries]), as_json)


@with_settings(*MODEL_SETTINGS)
def diagnose(
    settings: Settings,
    *,
    source: Annotated[
        str,
        typer.Argument(metavar="ADAPTER|FILE", help="Id of an adapter, or labelled rows to adapt to first."),
    ],
    option: Options = None,
    infer_options: InferOptions = False,
    input_column: InputColumn = USUAL.input,
    output_column: OutputColumn = USUAL.output,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2, help="Parts of the support, each held out once; by default one for each example, or 8."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, max=64, help="Posterior samples of each answer.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the adaptation, with a file.")] = 0,
    url: Url = None,
    api_key: ApiKey = None,
    only_look: OnlyLook = False,
    as_json: AsJson = False,
) -> None:
    """Estimate how good an adapter is: adapt to some examples of its support, predict the others."""
    with expected_errors_in_one_line(REFUSED if only_look else 1):
        from service import schemas  # noqa: PLC0415
        from service.api.native.rendering import diagnose_response  # noqa: PLC0415
        from service.cli.bodies import adapt_body  # noqa: PLC0415
        from service.cli.tables import diagnosis_table  # noqa: PLC0415

        columns = Columns(input_column, output_column)
        support = (
            read_support(Path(source), option, columns, infer=infer_options) if is_file(source) else None
        )

        if only_look:
            if support is None:
                raise typer.BadParameter("--dry-run needs labelled rows, not an adapter")
            new, asked = AdaptRequest(support, seed=seed), DiagnoseRequest("", folds, samples)
            return show_dry_run(
                settings, url, lambda engine: engine.dry_run_diagnosis(new, asked), as_json, stored=None
            )

        async def work(engine: Engine) -> Diagnosed:
            adapter = source
            if support is not None:
                obtained = await engine.create_adapter(AdaptRequest(support, seed=seed))
                adapter = obtained.adapter.manifest.id
            return await engine.diagnose(DiagnoseRequest(adapter, folds, samples))

        def here() -> dict[str, Any]:
            return diagnose_response(with_engine(settings, work), "local").model_dump(mode="json")

        def there(remote: Remote) -> dict[str, Any]:
            adapter = source
            if support is not None:
                made = adapt_body(AdaptRequest(support, seed=seed))
                adapter = str(adapted_there(remote, made)["id"])
            body = {"samples": samples, **({} if folds is None else {"folds": folds})}
            return read(
                schemas.DiagnoseResponse,
                remote.request("POST", f"/v1/adapters/{quote(adapter, safe='')}/diagnose", body),
            )

        answer = here_or_there(settings, url, api_key, here, there)
        show(answer, diagnosis_table(answer), as_json)
