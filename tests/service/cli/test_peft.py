"""`abmll export` and `abmll import-peft`, together with the commands that adapt and predict."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from abmll.posterior.posteriors import GlobalPosterior
from abmll.text.prompting import PromptEncoder, PromptTemplate
from abmll.text.tasks import Query
from model_store.adapters.store import AdapterStore
from model_store.posteriors import load_posterior, save_posterior
from model_store.tensors import posterior_digest
from service.cli import main as cli
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # in transformers
)

ROWS = [{"input": "great film", "output": "positive"}, {"input": "dull story", "output": "negative"}] * 2
INPUTS = ("great acting", "badly told")
OPTIONS = ("positive", "negative")


@pytest.fixture(autouse=True)
def _fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute in fp32, so that logits can be compared on processors with bf16 too."""
    monkeypatch.setattr("model_store.pretrained.bases.compute_dtype", lambda device: torch.float32)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "tiny-llama"
    tiny_model(dtype=torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def posterior(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a posterior for the tiny model from a LoRA with `import-peft`, with a large spread."""
    root = tmp_path_factory.mktemp("posteriors")
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    peft.get_peft_model(tiny_model(), config).save_pretrained(root / "lora")
    ran = invoke(
        "import-peft", root / "lora", "--out", root / "taken-over", "--spread", "0.05",
        "--posterior", "untrained", "--quantisation", "none", "--model", base, "--cache-dir", root,
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert "rank 4, a mean for 8 of 8 adapted layers" in " ".join(ran.output.split())
    return root / "taken-over"


def invoke(*command: object) -> Any:
    return CliRunner().invoke(cli.app, [str(part) for part in command])


@pytest.fixture
def model_options(base: Path, tmp_path: Path) -> list[object]:
    return ["--model", base, "--cache-dir", tmp_path / "cache", "--data-dir", tmp_path / "data"]


@pytest.fixture
def adapter_id(model_options: list[object], posterior: Path, tmp_path: Path) -> str:
    support = tmp_path / "support.jsonl"
    support.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    options = [part for option in OPTIONS for part in ("--option", option)]
    ran = invoke("adapt", support, *options, "--steps", 2, "--posterior", posterior, *model_options, "--json")
    assert ran.exit_code == 0, ran.output
    return str(json.loads(ran.stdout)["id"])


@torch.no_grad()
def in_peft(base: Path, folder: Path) -> torch.Tensor:
    """Return probabilities [inputs, options] of an exported adapter, from whole sequences."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, folder).eval()
    encoder = PromptEncoder(tiny_tokenizer(), PromptTemplate(), 256)
    scores = []
    for prompt in (encoder.encode(Query(text, OPTIONS)) for text in INPUTS):
        for continuation in prompt.continuations:
            ids = torch.tensor([prompt.prompt + continuation])
            log_probs = model(ids).logits[0].log_softmax(-1)
            places = range(len(prompt.prompt) - 1, ids.shape[1] - 1)
            scores.append(sum(log_probs[place, ids[0, place + 1]] for place in places))
    return torch.tensor(scores).view(len(INPUTS), len(OPTIONS)).softmax(-1)


def predicted(
    model_options: list[object], posterior: Path, adapter_id: str, *options: object
) -> torch.Tensor:
    inputs = Path(str(model_options[-1])).parent / "inputs.csv"
    inputs.write_text("\n".join(("input", *INPUTS)), "utf-8")
    ran = invoke(
        "predict",
        inputs,
        "--adapter",
        adapter_id,
        *options,
        "--posterior",
        posterior,
        *model_options,
        "--json",
    )
    assert ran.exit_code == 0, ran.output
    rows = json.loads(ran.stdout)["predictions"]
    by_option = [{entry["option"]: entry["probability"] for entry in row["distribution"]} for row in rows]
    return torch.tensor([[row[option] for option in OPTIONS] for row in by_option])


def test_exports_answer_in_peft_as_the_command_line_predicts(
    base: Path, model_options: list[object], posterior: Path, adapter_id: str, tmp_path: Path
) -> None:
    """So do the mean and the average over samples, while another process owns the store."""
    expected = [
        predicted(model_options, posterior, adapter_id, "--samples", 0),
        predicted(model_options, posterior, adapter_id, "--samples", 4, "--seed", 9),
    ]
    with AdapterStore(tmp_path / "data/adapters"):
        mean = invoke("export", adapter_id, "--out", tmp_path / "mean", *model_options)
        samples = invoke(
            "export", adapter_id, "--out", tmp_path / "s", "--samples", 4, "--seed", 9, *model_options
        )
    assert (mean.exit_code, samples.exit_code) == (0, 0), mean.output + samples.output
    assert f"Wrote the mean of {adapter_id}, rank 4" in mean.stdout
    assert f"Wrote 4 samples of {adapter_id}, rank 24" in samples.stdout
    folders = sorted((tmp_path / "s").iterdir())
    assert [folder.name for folder in folders] == [f"sample-{n}" for n in range(4)]
    by_sample = torch.stack([in_peft(base, folder) for folder in folders])
    torch.testing.assert_close(in_peft(base, tmp_path / "mean"), expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(by_sample.mean(0), expected[1], rtol=1e-5, atol=1e-6)
    assert (by_sample.std(0) > 1e-3).any()
    assert (by_sample.mean(0) - expected[0]).abs().max() > 1e-4


def test_a_global_posterior_is_exported_and_comes_back_as_it_was(
    base: Path, model_options: list[object], posterior: Path, tmp_path: Path
) -> None:
    ran = invoke("export", "--posterior", posterior, "--out", tmp_path / "mean", "--mean", *model_options)
    assert ran.exit_code == 0, ran.output
    again = invoke(
        "import-peft", tmp_path / "mean", "--out", tmp_path / "x", "--id", "again",
        "--posterior", posterior, "--model", base, "--cache-dir", tmp_path,
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    assert "The adapter names tiny-llama" in " ".join(again.output.split())
    one, other = load_posterior(posterior), load_posterior(tmp_path / "x")
    assert (other.manifest.id, other.manifest.base, other.prior.config) == (
        "again",
        one.manifest.base,
        one.prior.config,
    )
    for a, b in zip(one.prior.by_site(), other.prior.by_site(), strict=True):
        assert torch.equal(a.mean_a, b.mean_a)
        assert torch.equal(a.mean_b, b.mean_b)


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        (["adp_00000000"], 1, "no adapter 'adp_00000000'"),
        (["../adapters"], 1, "no adapter '../adapters'"),
        (["--posterior", "nope"], 1, "'nope' is no posterior"),
        ([], 2, "exactly one of ADAPTER_ID and --posterior"),
        (["adp_00000000", "--posterior", "nope"], 2, "exactly one of ADAPTER_ID and --posterior"),
        (["adp_00000000", "--mean", "--samples", "2"], 2, "one of --mean and --samples"),
        (["adp_00000000", "--seed", "2"], 2, "--seed is for --samples"),
        (["adp_00000000", "--samples", "65"], 2, "less than or equal to 64"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    command: list[str], status: int, message: str, model_options: list[object], tmp_path: Path
) -> None:
    ran = invoke("export", *command, "--out", tmp_path / "out", *model_options)
    assert ran.exit_code == status
    assert message in " ".join(ran.output.replace("│", " ").split())
    assert "Traceback" not in ran.output
    assert not (tmp_path / "out").exists()


def test_samples_of_the_output_family_are_refused(
    posterior: Path, model_options: list[object], tmp_path: Path
) -> None:
    one = load_posterior(posterior)
    config = replace(one.prior.config, noise=replace(one.prior.config.noise, family="output"))
    prior = GlobalPosterior(config, one.prior.sites, one.prior.values)
    manifest = replace(one.manifest, config=config, digest=posterior_digest(prior))
    save_posterior(tmp_path / "output", prior, manifest)
    command = ["export", "--posterior", tmp_path / "output", "--out", tmp_path / "out", *model_options]
    ran = invoke(*command, "--samples", 2)
    assert (ran.exit_code, "redrawn for every token" in " ".join(ran.output.split())) == (1, True)
    assert invoke(*command).exit_code == 0


def test_what_cannot_be_imported_is_refused_in_one_line(base: Path, posterior: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("precious")
    (tmp_path / "empty").mkdir()
    lora, settings = posterior.parent / "lora", ["--model", base, "--cache-dir", tmp_path]
    for folder, out, more, message in (
        (tmp_path / "empty", "out", [], "has no adapter_config.json"),
        (lora, "full", [], "exists and is not empty"),
        (lora, "Not An Id", [], "name it with --id"),
        (lora, "out", ["--posterior", "nope"], "is no posterior"),
        (lora, "out", [], "no posterior is the default for"),
    ):
        ran = invoke("import-peft", folder, "--out", tmp_path / out, *settings, *more)
        assert ran.exit_code in {1, 2}
        assert message in " ".join(ran.output.replace("│", " ").split())
        assert "Traceback" not in ran.output
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "full/mine").read_text() == "precious"


def test_an_adapter_that_no_step_moved_is_exported_with_the_weights_of_its_posterior(
    base: Path,
    model_options: list[object],
    posterior: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    support, out = tmp_path / "support.jsonl", tmp_path / "out"
    support.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    options = [part for option in OPTIONS for part in ("--option", option)]
    ran = invoke(
        "adapt", support, *options, "--effort", "instant", "--posterior", posterior, *model_options, "--json"
    )
    adapter_id = json.loads(ran.stdout)["id"]
    ran = invoke("export", adapter_id, "--out", out, *model_options)
    assert ran.exit_code == 1
    assert "weights are those of posterior taken-over" in " ".join(ran.output.split())
    assert not out.exists()
    monkeypatch.setattr("model_store.posteriors._SHIPPED", posterior.parent)
    assert invoke("export", adapter_id, "--out", out, *model_options).exit_code == 0
    assert (
        invoke("export", "--posterior", posterior, "--out", tmp_path / "theta", *model_options).exit_code == 0
    )
    assert torch.equal(in_peft(base, out), in_peft(base, tmp_path / "theta"))
