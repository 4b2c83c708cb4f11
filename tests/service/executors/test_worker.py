"""The worker and the command line on a real, tiny, random model."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification
from typer.testing import CliRunner

from abmll.adaptation.settings import AdaptSettings
from abmll.errors import PosteriorMismatchError, UnsupportedModelError
from abmll.model import FewShotModel
from abmll.posterior.posteriors import GlobalPosterior, TaskPosterior
from abmll.prediction.settings import PredictSettings
from abmll.text.prompting import PromptTemplate
from abmll.text.tasks import Example, Query
from model_store.adapters.store import AdapterStore
from model_store.errors import UnknownArtifactError
from model_store.posteriors import PosteriorManifest, save_posterior
from model_store.pretrained.bases import load_base
from model_store.pretrained.identity import BaseIdentity
from service.cli import main as cli
from service.engine.specs import encode_support
from service.executors.build import build_executor
from service.executors.contract import AdaptJob, Job, PredictJob, Worker
from service.executors.loading import load_worker
from service.metrics import Metrics
from service.settings import Settings
from tests.service.conftest import Server
from tests.tiny import CONFIGS, make_config, tiny_tokenizer

ROWS = [{"input": "great film", "output": "good"}, {"input": "dull story", "output": "bad"}] * 2
OPTIONS = ("good", "bad")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("bases") / "tiny-llama"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS["llama"](), dtype=torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def arguments(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("worker")
    return {
        "model": str(base),
        "quantisation": "none",
        "cache_dir": root / "cache",
        "data_dir": root / "data",
    }


@pytest.fixture(scope="module")
def prior_and_base(arguments: dict[str, Any]) -> tuple[GlobalPosterior, BaseIdentity]:
    """Return a posterior for the tiny Llama, and the identity of that base."""
    loaded = load_base(
        arguments["model"], quantisation="none", cache_dir=arguments["cache_dir"], progress=False
    )
    return FewShotModel(loaded.model, loaded.tokenizer, make_config()).prior, loaded.identity


@pytest.fixture(scope="module")
def posterior(
    prior_and_base: tuple[GlobalPosterior, BaseIdentity], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the folder of that posterior, which has its own settings."""
    return save(tmp_path_factory.mktemp("posteriors"), *prior_and_base)


def save(folder: Path, prior: GlobalPosterior, identity: BaseIdentity) -> Path:
    manifest = PosteriorManifest.of(
        prior,
        id="tiny-posterior",
        base=identity,
        adapt=asdict(AdaptSettings(steps=2)),
        template=PromptTemplate(after_input=" ->").to_json(),
        training={},
        metrics={},
    )
    save_posterior(folder / "tiny-posterior", prior, manifest)
    return folder / "tiny-posterior"


def test_a_worker_serves_what_the_settings_name(arguments: dict[str, Any], posterior: Path) -> None:
    worker = load_worker(Settings(**arguments, posterior=str(posterior)))
    served = worker.served
    assert (served.base.quantisation, served.posterior_id) == ("none", "tiny-posterior")
    assert served.defaults == AdaptSettings(steps=2)
    assert served.template["after_input"] == " ->"
    assert served.encoder.max_tokens == 256


def adapt_job(worker: Worker, steps: int) -> AdaptJob:
    support = [Example(row["input"], row["output"], OPTIONS) for row in ROWS]
    examples = encode_support(support, worker.served, truncate=False)
    return AdaptJob("adp_1", examples, AdaptSettings(steps=steps), seed=1)


def work(worker: Worker, job: Job, adapter: TaskPosterior | None = None) -> Any:
    run = worker.begin(job, adapter)
    while not run.done:
        worker.advance([run])
    worker.finish(run)
    return run.result()


def test_a_worker_adapts_and_predicts_what_the_jobs_say(arguments: dict[str, Any], posterior: Path) -> None:
    worker = load_worker(Settings(**arguments, posterior=str(posterior)))
    adaptation = work(worker, adapt_job(worker, steps=3))
    assert len(adaptation.losses) == 3
    encode = worker.served.encoder.encode
    queries = (Query(ROWS[0]["input"], OPTIONS), Query("word " * 300, OPTIONS), Query("write"))
    prompts = tuple(encode(query, truncate=True, max_new_tokens=4) for query in queries)
    job = PredictJob("adp_1", prompts, PredictSettings(2, seed=1, max_new_tokens=4))
    predictions = work(worker, job, adaptation.posterior)
    assert [p.predictive.options for p in predictions[:2]] == [OPTIONS, OPTIONS]
    assert [p.predictive.samples for p in predictions] == [2, 2, 2]
    assert 1 <= predictions[2].completion_tokens <= 8


def test_a_thread_and_processes_give_the_same_answers(arguments: dict[str, Any], posterior: Path) -> None:
    """The answers are equal to the bit, and so is the served model."""
    settings = Settings(**arguments, posterior=str(posterior), threads=1)
    queries = (Query(ROWS[0]["input"], OPTIONS), Query("write"))

    async def work(usual: Literal["inline", "process"]) -> tuple[Any, ...]:
        executor = build_executor(settings, Metrics(), usual)
        try:
            served = await executor.start()
            support = [Example(row["input"], row["output"], OPTIONS) for row in ROWS]
            examples = encode_support(support, served, truncate=False)
            fit = AdaptJob("adp_1", examples, AdaptSettings(steps=2), seed=1)
            adapted = (await executor.adapt(fit)).value
            prompts = tuple(served.encoder.encode(query, max_new_tokens=4) for query in queries)
            jobs = [
                PredictJob(f"adp_{n}", prompts, PredictSettings(samples, seed=1, max_new_tokens=4))
                for n in range(2)
                for samples in (3, "auto")
            ]
            asking = (executor.predict(job, adapted.posterior) for job in jobs)
            answers = [timed.value for timed in await asyncio.gather(*asking)]
            tokens = prompts[0]
            return served.identity, tokens, adapted.losses, adapted.posterior.values.tolist(), answers
        finally:
            await executor.close()

    assert asyncio.run(work("inline")) == asyncio.run(work("process"))


def test_a_posterior_of_another_base_is_refused_and_of_another_quantisation_logged(
    arguments: dict[str, Any],
    prior_and_base: tuple[GlobalPosterior, BaseIdentity],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    prior, identity = prior_and_base
    other = save(tmp_path / "1", prior, BaseIdentity(identity.id, "sha256:other", identity.quantisation))
    with pytest.raises(PosteriorMismatchError, match="sha256:other"):
        load_worker(Settings(**arguments, posterior=str(other)))
    int8 = save(tmp_path / "2", prior, BaseIdentity(identity.id, identity.revision, "int8"))
    load_worker(Settings(**arguments, posterior=str(int8)))
    assert "trained on int8 weights" in caplog.text


def test_without_a_posterior_for_the_model_the_message_says_what_to_name(
    arguments: dict[str, Any],
) -> None:
    with pytest.raises(PosteriorMismatchError, match="name one with the setting posterior, or `untrained`"):
        load_worker(Settings(**arguments))
    with pytest.raises(UnknownArtifactError, match="nope"):
        load_worker(Settings(**arguments, posterior="nope"))


def invoke(arguments: dict[str, Any], posterior: Path, *command: str) -> Any:
    settings = [
        part for name, value in arguments.items() for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    return CliRunner().invoke(cli.app, [*command, *settings, "--posterior", str(posterior)])


def test_adapt_and_predict_on_the_command_line_give_one_adapter_and_one_answer(
    arguments: dict[str, Any], posterior: Path, tmp_path: Path
) -> None:
    support, inputs = tmp_path / "support.jsonl", tmp_path / "inputs.csv"
    support.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    inputs.write_text("input\ngreat acting\nbadly told\n", "utf-8")
    options = [part for option in OPTIONS for part in ("--option", option)]
    adapted = invoke(arguments, posterior, "adapt", str(support), *options, "--json")
    assert adapted.exit_code == 0, adapted.output
    adapter = json.loads(adapted.stdout)
    assert adapter["support"]["per_label"] == {"good": 2, "bad": 2}
    by_id = invoke(arguments, posterior, "predict", str(inputs), "--adapter", adapter["id"], "--json")
    inline = invoke(
        arguments, posterior, "predict", str(inputs), "--support", str(support), *options, "--json"
    )
    answers = [json.loads(result.stdout) for result in (by_id, inline)]
    assert [answer["cache"] for answer in answers] == ["hit", "hit"]
    assert answers[0]["predictions"] == answers[1]["predictions"]
    assert len(answers[0]["predictions"]) == 2
    table = invoke(arguments, posterior, "predict", str(inputs), "--adapter", adapter["id"], "--samples", "2")
    for text in (adapter["id"], "great acting", "badly told", "±"):
        assert text in table.stdout
    by_gate = ("predict", str(inputs), "--adapter", adapter["id"], "--min-confidence", "0.9", "--samples")
    auto = json.loads(invoke(arguments, posterior, *by_gate, "auto", "--json").stdout)
    assert all(8 <= p["samples"] <= 64 for p in auto["predictions"])
    refused = invoke(arguments, posterior, *by_gate, "65")
    assert (refused.exit_code, "from 0 to 64, or auto" in refused.output) == (2, True)
    shown = invoke(arguments, posterior, "adapt", str(support), *options)
    assert "good: 2, bad: 2" in shown.stdout


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"input": "a"}\n', "line 1 has no field `output`"),
        ("nonsense\n", "line 1 is not JSON"),
        ("", "rows.jsonl is empty"),
    ],
)
def test_bad_files_are_reported_in_one_line(
    arguments: dict[str, Any], posterior: Path, tmp_path: Path, rows: str, message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(rows, "utf-8")
    result = invoke(arguments, posterior, "adapt", str(path))
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_data_folder_that_a_server_uses_is_reported_in_one_line(
    arguments: dict[str, Any], posterior: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    with AdapterStore(arguments["data_dir"] / "adapters"):
        results = [invoke(arguments, posterior, *command) for command in (["adapt", str(path)], ["serve"])]
    for result in results:
        assert result.exit_code == 1
        assert "another process uses the adapter store" in result.stderr.replace("\n", " ")


def test_predict_needs_exactly_one_source(arguments: dict[str, Any], posterior: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input": "a"}\n', "utf-8")
    result = invoke(arguments, posterior, "predict", str(path))
    assert result.exit_code == 2
    assert "exactly one of --support and --adapter" in result.output


def test_models_lists_the_catalogue() -> None:
    listed = json.loads(CliRunner().invoke(cli.app, ["models", "--json"]).stdout)
    assert [base["name"] for base in listed["bases"] if base["default"]] == ["smollm2-135m-instruct"]
    assert "smollm2-135m-instruct" in CliRunner().invoke(cli.app, ["models"]).stdout


def test_serve_demo_shows_an_answer_and_goes_on_serving_until_it_is_stopped(
    arguments: dict[str, Any], posterior: Path, tmp_path: Path
) -> None:
    settings = {**arguments, "posterior": posterior, "data_dir": tmp_path, "port": 0, "threads": 1}
    options = [
        part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    command = [sys.executable, "-c", "from service.cli.main import app; app()", "serve", "--demo", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            shown = ""
            while "in nats" not in shown:  # the end of the table's caption
                line = process.stdout.readline()
                assert line, process.stderr.read()
                shown += line
            (url,) = set(re.findall(r"http://[0-9.:]+", shown))
            assert httpx.get(f"{url}/readyz").status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert "adp_" in shown
    assert "decision" in shown


def test_demo_shows_the_answer_of_a_running_server(tmp_path: Path) -> None:
    with Server(tmp_path).listening() as running:
        result = CliRunner().invoke(cli.app, ["demo", "--url", running.url])
    assert result.exit_code == 0
    for text in ("adp_", "Do you have", "abstain"):
        assert text in result.stdout


def test_demo_tells_when_nobody_answers_or_the_server_refuses(tmp_path: Path) -> None:
    silent = CliRunner().invoke(cli.app, ["demo", "--url", "http://127.0.0.1:9"])
    assert (silent.exit_code, "No answer from" in silent.stderr) == (1, True)
    server = Server(tmp_path, max_inputs=1)
    with server.listening() as running:
        refused = CliRunner().invoke(cli.app, ["demo", "--url", running.url])
    assert (refused.exit_code, "limit_exceeded" in refused.stderr) == (1, True)


def test_an_nli_model_tells_which_texts_mean_the_same(
    arguments: dict[str, Any],
    posterior: Path,
    prior_and_base: tuple[GlobalPosterior, BaseIdentity],
    tmp_path: Path,
) -> None:
    """A model that finds entailment everywhere gives one meaning; the base is refused as one."""
    config = BertConfig(
        vocab_size=512, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        id2label={0: "entailment", 1: "other"},
    )  # fmt: skip
    classifier = BertForSequenceClassification(config)
    classifier.classifier.bias.data = torch.tensor([100.0, -100.0])
    classifier.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    prior, _ = prior_and_base
    values = torch.randn(prior.values.shape, generator=torch.Generator().manual_seed(1))
    wild = TaskPosterior(prior.config, prior.sites, prior.values + 0.3 * values)
    settings = {**arguments, "posterior": str(posterior)}
    one, other = load_worker(Settings(**settings)), load_worker(Settings(**settings, nli_model=str(tmp_path)))
    prompts = (one.served.encoder.encode(Query("write"), max_new_tokens=4),)
    job = PredictJob("adp_1", prompts, PredictSettings(4, seed=1, max_new_tokens=4))
    apart, together = work(one, job, wild)[0].text, work(other, job, wild)[0].text
    assert len(apart.clusters) > 1
    assert len(together.clusters) == 1
    with pytest.raises(UnsupportedModelError, match="entailment"):
        load_worker(Settings(**settings, nli_model=arguments["model"]))
