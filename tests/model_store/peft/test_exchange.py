"""Exports load in the `peft` library with equal logits, and its adapters can be imported."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from abmll.adaptation.settings import AdaptSettings
from abmll.decoder.layout import unflatten
from abmll.decoder.rows import by_prompt, collate
from abmll.errors import PosteriorMismatchError, SampleNotALoraError
from abmll.model import FewShotModel
from abmll.posterior.noise.contract import Samples
from abmll.posterior.noise.point import mean_samples
from abmll.posterior.noise.weight import WeightNoise
from abmll.posterior.plain_lora import PlainLora
from abmll.posterior.posteriors import GlobalPosterior, Posterior, TaskPosterior
from abmll.seeds import sample_seeds
from abmll.text.prompting import EncodedPrompt, PromptTemplate
from abmll.text.tasks import Query
from model_store.errors import (
    CorruptArtifactError,
    FolderNotEmptyError,
    UnknownArtifactError,
    UnsupportedPeftError,
)
from model_store.peft.exchange import Subject, export_mean, export_samples, import_posterior
from model_store.peft.format import public_name, read_peft, write_peft
from model_store.posteriors import LoadedPosterior, PosteriorManifest, load_posterior, save_posterior
from model_store.pretrained.bases import BaseSkeleton, load_base, load_base_skeleton
from model_store.pretrained.identity import BaseIdentity
from tests.tiny import CONFIGS, VOCABULARY, make_config, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings(
    # transformers warns of a call in peft.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

ROOT = Path(__file__).resolve().parents[3]
PROMPTS = [(5, 6, 7, 8, 9), (20, 21), tuple(range(30, 60))]
EVERY_TOKEN = tuple((token,) for token in range(VOCABULARY))
OPTIONS = ("positive", "negative", "not related")
QUERIES = [Query(text, OPTIONS) for text in ("the film was wonderful", "dull", "Paris 0123")]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of the tiny models in fp32, by architecture."""
    root = tmp_path_factory.mktemp("bases")
    for architecture in CONFIGS:
        tiny_model(architecture).save_pretrained(root / architecture)
    return {architecture: root / architecture for architecture in CONFIGS}


@pytest.fixture
def base(bases: dict[str, Path]) -> Path:
    return bases["llama"]


@pytest.fixture
def skeleton(base: Path) -> BaseSkeleton:
    return load_skeleton(base)


def load_skeleton(base: Path) -> BaseSkeleton:
    return load_base_skeleton(str(base), quantisation="none", progress=False)


def make_model(architecture: str = "llama", **config: object) -> FewShotModel:
    """Return a tiny model with a random and wide posterior, so that samples differ."""
    torch.set_num_threads(1)
    values = {"rank": 4, "alpha": 10.0, "first_layer": 1, "offset": 0.02, "scale": 1.5, **config}
    model = FewShotModel(tiny_model(architecture), tiny_tokenizer(), make_config(**values))  # type: ignore[arg-type]
    noise = 0.1 * torch.randn(model.prior.values.shape, generator=torch.Generator().manual_seed(1))
    model.prior = GlobalPosterior(model.prior.config, model.prior.sites, model.prior.values + noise)
    return model


def subject_of(posterior: Posterior, skeleton: BaseSkeleton) -> Subject:
    return Subject("adp_0", posterior, skeleton.identity, PromptTemplate().to_json())


def in_peft(base: Path, adapter: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, adapter).eval()


@torch.no_grad()
def peft_log_probs(model: Any) -> list[torch.Tensor]:
    """Return the log-probability of every token after each prompt, one prompt at a time."""
    return [model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for prompt in PROMPTS]


@torch.no_grad()
def our_log_probs(model: FewShotModel, samples: Samples) -> list[torch.Tensor]:
    rows = collate([EncodedPrompt(prompt, EVERY_TOKEN) for prompt in PROMPTS])
    draw = samples.for_rows([0] * len(PROMPTS), rows.lengths)
    return by_prompt(model.backbone.log_probs(model.backbone.trunk(rows), rows, draw), rows)


def our_mean(model: FewShotModel) -> list[torch.Tensor]:
    prior = model.prior
    return our_log_probs(
        model,
        mean_samples(
            prior.config.layout, unflatten(prior.values[None], prior.sites, prior.config.layout.rank)
        ),
    )


def our_sample(model: FewShotModel, seed: int, number: int) -> list[torch.Tensor]:
    prior = model.prior
    tensors = unflatten(prior.values[None], prior.sites, prior.config.layout.rank)
    seeds = sample_seeds(seed, number, number + 1, paired=True)
    return our_log_probs(
        model,
        WeightNoise().samples(
            prior.config, prior.sites, tensors, seeds=seeds, task_of_sample=[0], dtype=torch.float32
        ),
    )


def assert_equal_logits(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def differ(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all((a - b).abs().max() > 0.01 for a, b in zip(one, other, strict=True))


# --- export ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", CONFIGS)
def test_mean_and_samples_have_the_logits_in_peft_that_they_have_here(
    architecture: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    model, skeleton = make_model(architecture), load_skeleton(bases[architecture])
    subject = subject_of(model.prior, skeleton)
    assert export_mean(tmp_path / "mean", subject, skeleton) == 4
    done: list[int] = []
    rank = export_samples(
        tmp_path / "samples", subject, skeleton, count=3, seed=7, sequence_seed=7, on_sample=done.append
    )
    assert (rank, done) == (4 + 4 * 5, [1, 2, 3])
    found = [peft_log_probs(in_peft(bases[architecture], tmp_path / "mean"))]
    found += [
        peft_log_probs(in_peft(bases[architecture], tmp_path / f"samples/sample-{n}")) for n in range(3)
    ]
    expected = [our_mean(model), *(our_sample(model, 7, n) for n in range(3))]
    for one, other in zip(found, expected, strict=True):
        assert_equal_logits(one, other)
    assert differ(found[0], found[1])
    assert differ(found[1], found[2])


def test_a_prediction_is_the_mean_of_the_exported_samples_option_probabilities(
    base: Path, skeleton: BaseSkeleton, tmp_path: Path
) -> None:
    model = make_model()
    posterior = TaskPosterior.start(model.prior)
    export_samples(
        tmp_path / "out", subject_of(posterior, skeleton), skeleton,
        count=5, seed=3, sequence_seed=11, on_sample=lambda done: None,
    )  # fmt: skip
    encoded = [model.encoder.encode(query) for query in QUERIES]
    by_sample = torch.stack(
        [
            option_probabilities(in_peft(base, folder), encoded)
            for folder in sorted((tmp_path / "out").iterdir())
        ]
    )
    assert (by_sample.std(0) > 1e-3).any()
    predicted = model.predict(posterior, QUERIES, samples=5, seed=11)
    expected = torch.tensor([prediction.predictive.probabilities for prediction in predicted])
    torch.testing.assert_close(by_sample.mean(0), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def option_probabilities(model: Any, prompts: list[EncodedPrompt]) -> torch.Tensor:
    """Return probabilities [prompts, options], from whole sequences one by one."""
    scores = []
    for prompt in prompts:
        for continuation in prompt.continuations:
            ids = torch.tensor([prompt.prompt + continuation])
            log_probs = model(ids).logits[0].log_softmax(-1)
            places = range(len(prompt.prompt) - 1, ids.shape[1] - 1)
            scores.append(sum(log_probs[place, ids[0, place + 1]] for place in places))
    return torch.tensor(scores).view(len(prompts), -1).softmax(-1)


def test_what_is_written_is_what_peft_writes(skeleton: BaseSkeleton, base: Path, tmp_path: Path) -> None:
    """An adapter of PEFT on the same layers has the same files, tensors, and values of fields."""
    model = make_model(modules=("q", "down"))
    export_mean(tmp_path / "ours", subject_of(model.prior, skeleton), skeleton)
    config = peft.LoraConfig(
        r=4, lora_alpha=10, target_modules=["q_proj", "down_proj"], layers_to_transform=[1, 2, 3],
        task_type="CAUSAL_LM",
    )  # fmt: skip
    peft.get_peft_model(tiny_model(), config).save_pretrained(tmp_path / "theirs")
    ours, theirs = (
        json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs")
    )
    theirs["target_modules"] = sorted(theirs["target_modules"])
    assert ours == {name: theirs[name] for name in ours} | {"base_model_name_or_path": "llama"}
    shapes = [
        {
            name: tensor.shape
            for name, tensor in load_file(tmp_path / who / "adapter_model.safetensors").items()
        }
        for who in ("ours", "theirs")
    ]
    assert shapes[0] == shapes[1]
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {
        path.name for path in (tmp_path / "theirs").iterdir()
    }


def test_the_card_says_how_to_use_a_sample(skeleton: BaseSkeleton, tmp_path: Path) -> None:
    model = make_model()
    export_samples(
        tmp_path / "out", subject_of(model.prior, skeleton), skeleton,
        count=1, seed=3, sequence_seed=11, on_sample=lambda done: None,
    )  # fmt: skip
    card = (tmp_path / "out/sample-0/README.md").read_text()
    for text in (
        "library_name: peft",
        skeleton.identity.revision,
        "rank 24",
        "**seed**: 3",
        "`'\\nAnswer:'`",
        "mean of all samples",
    ):
        assert text in card


def test_the_page_says_how_to_write_the_weights_that_a_quantised_base_stands_for(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/peft.md").read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ABMLL_CACHE_DIR", str(tmp_path / "cache"))
    exec(code.replace("smollm2-135m-instruct", str(checkpoint)), {})
    written, original = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (tmp_path / "base", checkpoint)
    )
    served = load_base(str(checkpoint), keep_dequantised=True, progress=False).model.state_dict()
    assert written.keys() == served.keys()
    assert all(torch.equal(written[name], served[name].float()) for name in served)
    name = "model.layers.1.self_attn.q_proj.weight"
    assert not torch.equal(written[name], original[name])  # it is quantised to int8


def test_a_base_of_the_hub_is_named_as_there() -> None:
    assert public_name(BaseIdentity("qwen2-7b-instruct", "abc", "nf4")) == "Qwen/Qwen2-7B-Instruct"
    assert public_name(BaseIdentity("owner/name", "abc", "nf4")) == "owner/name"


def test_samples_of_the_output_family_are_refused_and_leave_nothing(
    skeleton: BaseSkeleton, base: Path, tmp_path: Path
) -> None:
    model = make_model(family="output", offset=-20.0)
    subject = subject_of(model.prior, skeleton)
    with pytest.raises(SampleNotALoraError):
        export_samples(
            tmp_path / "out", subject, skeleton, count=2, seed=0, sequence_seed=0, on_sample=lambda done: None
        )
    assert not list(tmp_path.iterdir())
    export_mean(tmp_path / "out", subject, skeleton)
    assert_equal_logits(peft_log_probs(in_peft(base, tmp_path / "out")), our_mean(model))


def test_exports_never_replace_anything(skeleton: BaseSkeleton, tmp_path: Path) -> None:
    subject = subject_of(make_model().prior, skeleton)
    (tmp_path / "mine").write_text("precious")
    for taken in (tmp_path, tmp_path / "mine"):
        with pytest.raises(FolderNotEmptyError):
            export_mean(taken, subject, skeleton)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_another_base_is_refused(skeleton: BaseSkeleton, bases: dict[str, Path], tmp_path: Path) -> None:
    subject = subject_of(make_model().prior, skeleton)
    with pytest.raises(PosteriorMismatchError, match="was made for llama at revision sha256:"):
        export_mean(tmp_path / "out", subject, load_skeleton(bases["qwen2"]))
    other = BaseSkeleton(load_skeleton(bases["phi"]).model, skeleton.identity)
    with pytest.raises(PosteriorMismatchError, match="other layers or sizes"):
        export_mean(tmp_path / "out", subject, other)
    assert not list(tmp_path.iterdir())


# --- import ---------------------------------------------------------------------------------------


def loaded(model: FewShotModel, identity: BaseIdentity) -> LoadedPosterior:
    manifest = PosteriorManifest.of(
        model.prior,
        id="tiny",
        base=identity,
        adapt=asdict(AdaptSettings(steps=2)),
        template={"before_input": "", "after_input": " ->", "before_output": " "},
        training={},
        metrics={},
    )
    return LoadedPosterior(model.prior, manifest)


def peft_adapter(folder: Path, **config: Any) -> Any:
    """Save a LoRA of peft with random A and B, and return its model to compare with."""
    torch.manual_seed(3)
    values: dict[str, Any] = {
        "r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1, 3],
        "task_type": "CAUSAL_LM", **config,
    }  # fmt: skip
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(**values))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return model.eval()


def with_prior(prior: GlobalPosterior) -> FewShotModel:
    return FewShotModel(tiny_model(), tiny_tokenizer(), prior)


def test_an_exported_mean_comes_back_the_same(skeleton: BaseSkeleton, tmp_path: Path) -> None:
    model = make_model()
    other = replace(loaded(model, skeleton.identity), prior=with_prior(model.prior.without_noise()).prior)
    export_mean(tmp_path / "peft", subject_of(model.prior, skeleton), skeleton)
    imported = import_posterior(read_peft(tmp_path / "peft"), skeleton, other, id="back")
    save_posterior(tmp_path / "back", imported.prior, imported.manifest)
    again = load_posterior(tmp_path / "back")
    assert again.manifest.base == skeleton.identity
    assert (again.manifest.adapt["steps"], again.manifest.template["after_input"]) == (2, " ->")
    assert "trained elsewhere" in (tmp_path / "back/README.md").read_text()
    for found, given, old in zip(
        again.prior.by_site(), model.prior.by_site(), other.prior.by_site(), strict=True
    ):
        assert torch.equal(found.mean_a, given.mean_a)
        assert torch.equal(found.mean_b, given.mean_b)
        assert torch.equal(found.spread_b, old.spread_b)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"r": 4, "target_modules": ["q_proj", "v_proj", "up_proj"], "layers_to_transform": [1, 2, 3]},
        {"use_rslora": True},
        {
            "rank_pattern": {"q_proj": 4},
            "alpha_pattern": {r"layers\.3\.self_attn\.q_proj": 7, "down_proj": 1},
        },
        {"lora_dropout": 0.5, "init_lora_weights": "gaussian"},
    ],
)
@pytest.mark.parametrize("own_layout", [False, True])
def test_an_adapter_made_by_peft_has_equal_logits_here(
    config: dict[str, Any], own_layout: bool, skeleton: BaseSkeleton, tmp_path: Path
) -> None:
    theirs = peft_adapter(tmp_path, **config)
    like = None if own_layout else loaded(make_model(), skeleton.identity)
    imported = import_posterior(read_peft(tmp_path), skeleton, like, id="taken-over")
    found = our_mean(with_prior(imported.prior))
    assert_equal_logits(found, peft_log_probs(theirs))
    with theirs.disable_adapter():
        assert differ(found, peft_log_probs(theirs))
    if own_layout:
        assert imported.prior.config.layout.rank == max(
            config.get("r", 2), *config.get("rank_pattern", {"": 0}).values()
        )
        assert imported.prior.config.layout.first_layer == 1


def test_a_given_spread_replaces_the_posteriors(skeleton: BaseSkeleton, tmp_path: Path) -> None:
    peft_adapter(tmp_path)
    like = loaded(make_model(family="output"), skeleton.identity)
    config = import_posterior(read_peft(tmp_path), skeleton, like, id="wide", spread=0.03).prior.config
    assert (config.noise.family, config.noise.offset, config.noise.scale) == ("weight", 0.03, 1.0)


def test_an_imported_mean_is_where_adaptation_starts_and_serving_samples(
    skeleton: BaseSkeleton, tmp_path: Path
) -> None:
    """Without a spread, samples are the mean; with one, they differ."""
    peft_adapter(tmp_path)
    answers = []
    for spread in (0.0, 0.02):
        imported = import_posterior(read_peft(tmp_path), skeleton, None, id="p", spread=spread)
        model = with_prior(imported.prior)
        (mean,), (sampled,) = (model.predict(None, QUERIES[:1], samples=n) for n in (0, 8))
        answers.append((mean.predictive, sampled.predictive))
    assert answers[0][0].probabilities == pytest.approx(answers[0][1].probabilities, abs=1e-6)
    assert answers[1][0].probabilities == pytest.approx(answers[0][0].probabilities, abs=1e-6)
    assert answers[1][1].probabilities != pytest.approx(answers[1][0].probabilities, abs=1e-4)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


FIRST = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora is set"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias is set"),
        ({"use_qalora": True}, "use_qalora is set"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is set"),
        ({"layer_replication": [[0, 4]]}, "layer_replication is set"),
        ({"a_field_of_the_future": 1}, "a_field_of_the_future is set"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"peft_type": "IA3"}, "of type IA3"),
    ],
)
def test_what_is_more_than_a_lora_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    peft_adapter(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(UnsupportedPeftError, match=message):
        read_peft(tmp_path)


def test_what_peft_itself_writes_beyond_a_lora_is_refused(tmp_path: Path) -> None:
    peft_adapter(tmp_path / "dora", use_dora=True)
    with pytest.raises(UnsupportedPeftError, match="use_dora"):
        read_peft(tmp_path / "dora")
    edit(tmp_path / "dora", use_dora=False)
    with pytest.raises(UnsupportedPeftError, match=r"lora_magnitude_vector.*no part of a LoRA"):
        read_peft(tmp_path / "dora")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit(f, r="many"), "adapter_config.json of .*: r: "),
        (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "adapter_config.json"),
        (lambda f: edit(f, r=3), "do not have the rank 3"),
        (lambda f: edit(f, alpha_pattern={"(": 3}), "no regular expression"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"nothing"), "tensors of .* cannot be read"),
        (lambda f: edit_tensors(f, lambda t: t.pop(FIRST)), "only one of lora_A and lora_B"),
        (lambda f: edit_tensors(f, lambda t: t[FIRST].fill_(torch.nan)), "finite numbers"),
        (lambda f: edit_tensors(f, lambda t: t.update({FIRST: t[FIRST].flatten()})), "not a matrix"),
        (lambda f: edit_tensors(f, lambda t: t.update({FIRST: t[FIRST].int()})), "not a matrix"),
    ],
)
def test_damaged_adapters_are_refused(damage: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    peft_adapter(tmp_path)
    damage(tmp_path)
    with pytest.raises(CorruptArtifactError, match=message):
        read_peft(tmp_path)


def test_only_safetensors_are_read(tmp_path: Path) -> None:
    peft_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(UnknownArtifactError, match="only adapters in safetensors"):
        read_peft(tmp_path)
    peft_adapter(tmp_path)
    save_file({}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UnsupportedPeftError, match="no tensors"):
        read_peft(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 8}, "adapter has rank 8, posterior tiny 4"),
        ({"layers_to_transform": [0, 1]}, r"posterior tiny does not adapt layers\.0\."),
        ({"target_modules": ["q_proj", "k_proj"]}, r"does not adapt layers\.[13]\.k"),
    ],
)
def test_what_the_posterior_has_no_place_for_is_refused(
    config: dict[str, Any], message: str, skeleton: BaseSkeleton, tmp_path: Path
) -> None:
    peft_adapter(tmp_path, **config)
    with pytest.raises(UnsupportedPeftError, match=message):
        import_posterior(read_peft(tmp_path), skeleton, loaded(make_model(), skeleton.identity), id="p")


def test_an_adapter_of_another_base_is_refused(skeleton: BaseSkeleton, tmp_path: Path) -> None:
    peft_adapter(tmp_path)
    adapter = read_peft(tmp_path)
    path, wrong = next(iter(adapter.loras)), PlainLora(torch.ones(2, 99), torch.ones(32, 2), 3.0)
    with pytest.raises(PosteriorMismatchError, match="do not fit"):
        import_posterior(replace(adapter, loras={path: wrong}), skeleton, None, id="p")
    with pytest.raises(UnsupportedPeftError, match="lm_head is no layer of llama"):
        import_posterior(replace(adapter, loras={"lm_head": wrong}), skeleton, None, id="p")


def test_adapters_of_one_rank_only_are_written(tmp_path: Path) -> None:
    loras = {
        f"model.layers.{rank}.q_proj": PlainLora(torch.ones(rank, 2), torch.ones(2, rank), 1.0)
        for rank in (1, 2)
    }
    with pytest.raises(ValueError, match="unpack"):
        write_peft(tmp_path, loras, BaseIdentity("tiny", "sha256:0", "none"), "")
