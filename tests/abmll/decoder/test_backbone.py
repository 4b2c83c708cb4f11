"""Backbones against the whole model, on five architectures."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from abmll.decoder.backbone import AdaptedLinear, Backbone
from abmll.decoder.layout import AdapterLayout, unflatten
from abmll.decoder.quantised import dense_weight
from abmll.decoder.rows import by_prompt, collate, group, share_prefixes
from abmll.decoder.sites import MODULE_NAMES
from abmll.errors import UnsupportedModelError
from abmll.model import FewShotModel
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.noise.point import mean_samples
from abmll.posterior.noise.weight import WeightNoise
from abmll.posterior.posteriors import GlobalPosterior
from abmll.text.prompting import EncodedPrompt
from tests.tiny import CONFIGS, tiny_model

PROMPTS = [
    EncodedPrompt((5, 6, 7, 8, 9), ((10, 11, 12), (13,), (10, 14))),
    EncodedPrompt((20, 21), ((22, 23), (24, 25, 26, 27))),
    EncodedPrompt(tuple(range(30, 60)), ((61,), (62,))),
]


def reference_scores(model: object, prompt: EncodedPrompt) -> torch.Tensor:
    """Return each continuation's log-probability from one forward pass of the model itself."""
    scores = []
    for continuation in prompt.continuations:
        ids = torch.tensor([prompt.prompt + continuation])
        with torch.no_grad():
            log_probs = model(ids).logits[0].float().log_softmax(-1)  # type: ignore[operator]
        places = range(len(prompt.prompt) - 1, ids.shape[1] - 1)
        scores.append(sum(log_probs[place, ids[0, place + 1]] for place in places))
    return torch.stack(scores)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("first_layer", [0, 2])
def test_packed_options_score_as_whole_sequences_one_by_one(architecture: str, first_layer: int) -> None:
    expected = [reference_scores(tiny_model(architecture), prompt) for prompt in PROMPTS]
    backbone = Backbone(tiny_model(architecture), AdapterLayout(first_layer=first_layer))
    rows = collate(PROMPTS)
    found = by_prompt(backbone.log_probs(backbone.trunk(rows), rows, None), rows)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_an_untrained_adapter_without_noise_reproduces_the_base_bit_for_bit(architecture: str) -> None:
    backbone = Backbone(tiny_model(architecture), AdapterLayout(first_layer=1))
    theta = GlobalPosterior.untrained(PosteriorConfig(backbone.layout), backbone.sites)
    rows = collate(PROMPTS)
    samples = mean_samples(theta.config.layout, unflatten(theta.values[None], theta.sites, 8))
    draw = samples.for_rows([0] * len(PROMPTS), rows.lengths)
    hidden = backbone.trunk(rows)
    assert torch.equal(backbone.log_probs(hidden, rows, draw), backbone.log_probs(hidden, rows, None))


def test_whole_model_in_bf16_agrees_within_its_rounding() -> None:
    expected = [reference_scores(tiny_model(dtype=torch.bfloat16), prompt) for prompt in PROMPTS]
    backbone = Backbone(tiny_model(dtype=torch.bfloat16), AdapterLayout(first_layer=2))
    rows = collate(PROMPTS)
    found = by_prompt(backbone.log_probs(backbone.trunk(rows), rows, None), rows)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=0.15, rtol=0.02)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("llama", ["q", "v", "o", "gate", "up", "down"]),
        ("qwen2", ["q", "v", "o", "gate", "up", "down"]),
        ("mistral", ["q", "v", "o", "gate", "up", "down"]),
        ("gpt_neox", ["qkv", "o", "up", "down"]),
        ("phi", ["q", "v", "o", "up", "down"]),
    ],
)
def test_one_rule_finds_the_modules_of_every_architecture(architecture: str, expected: list[str]) -> None:
    backbone = Backbone(tiny_model(architecture), AdapterLayout(first_layer=3))
    assert {site.layer for site in backbone.sites} == {3}
    assert sorted(site.module for site in backbone.sites) == sorted(expected)
    wrapped = [
        name.removesuffix(".projection")
        for name, module in backbone.model.named_modules()
        if isinstance(module, AdaptedLinear)
    ]
    assert len(wrapped) == len(expected)
    assert all(MODULE_NAMES[name.split(".")[-1]] in expected for name in wrapped)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_prompts_behind_a_shared_prefix_score_as_whole_sequences(architecture: str) -> None:
    prefix = tuple(range(100, 120))
    prompts = [
        EncodedPrompt(prefix + prompt.prompt, prompt.continuations) for prompt in (*PROMPTS, PROMPTS[0])
    ]
    (members,) = share_prefixes(prompts)
    row = group([prompts[i] for i in members])
    assert row.shared >= len(prefix)
    assert row.tokens < sum(len(p.prompt) for p in prompts)
    backbone = Backbone(tiny_model(architecture), AdapterLayout(first_layer=2))
    rows = collate([row])
    found = by_prompt(backbone.log_probs(backbone.trunk(rows), rows, None), rows)
    for i, scores in zip(members, found, strict=True):
        expected = reference_scores(tiny_model(architecture), prompts[i])
        torch.testing.assert_close(scores, expected, atol=2e-4, rtol=1e-4)


def test_prompts_with_little_in_common_keep_rows_of_their_own() -> None:
    assert sorted(share_prefixes(PROMPTS)) == [[0], [1], [2]]
    long = [EncodedPrompt((1,) * 300 + (i,), ((2,), (3,))) for i in range(8)]
    rows = share_prefixes([EncodedPrompt(p.prompt + (9,) * 200, p.continuations) for p in long])
    assert [len(row) for row in rows] == [1] * 8  # sharing would make rows of more than 512 tokens


@pytest.mark.parametrize("merge_from", [1, 10_000])
def test_segments_of_tokens_use_their_own_adapters(
    merge_from: int, make_model: Callable[..., FewShotModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare a batch of several adapters, with updates merged or not, with each adapter alone."""
    monkeypatch.setattr("abmll.decoder.low_rank.MERGE_FROM_TOKENS", merge_from)
    model = make_model()
    other = model.prior.values * 1.5
    tensors = unflatten(
        torch.stack([model.prior.values, other]), model.prior.sites, model.prior.config.layout.rank
    )
    samples = mean_samples(model.prior.config.layout, tensors)
    for order in ([0, 1, 1], [1, 0, 1], [1, 1, 1]):
        rows = collate(PROMPTS)
        hidden = model.backbone.trunk(rows)
        with torch.no_grad():
            both = model.backbone.log_probs(hidden, rows, samples.for_rows(order, rows.lengths))
        for prompt, sample, found in zip(PROMPTS, order, by_prompt(both, rows), strict=True):
            alone = collate([prompt])
            with torch.no_grad():
                expected = model.backbone.log_probs(
                    model.backbone.trunk(alone), alone, samples.for_rows([sample], alone.lengths)
                )
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("quantisation", ["nf4", "int8"])
def test_quantised_layers_give_what_their_dense_weights_give(quantisation: str) -> None:
    """Compare output and gradient of a quantised model with those of its dense weights."""
    dense, quantised = quantised_pair(quantisation)
    backbones = [Backbone(model, AdapterLayout(rank=4, first_layer=1)) for model in (dense, quantised)]
    results = []
    for backbone in backbones:
        theta = GlobalPosterior.untrained(PosteriorConfig(backbone.layout), backbone.sites)
        noise = 0.1 * torch.randn(theta.values.shape, generator=torch.Generator().manual_seed(1))
        values = (theta.values + noise)[None].requires_grad_()
        rows = collate(PROMPTS)
        draw = WeightNoise().training_draw(
            theta.config, backbone.sites, unflatten(values, backbone.sites, 4),
            seeds=[1, 2, 3], task_of_row=[0, 0, 0], row_tokens=rows.lengths, dtype=torch.float32,
        )  # fmt: skip
        scores = backbone.log_probs(backbone.trunk(rows), rows, draw)
        results.append((scores.detach(), *torch.autograd.grad(scores.sum(), values)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def quantised_pair(quantisation: str) -> tuple[Any, Any]:
    """Return a model with plain layers, and the same with bitsandbytes layers of equal weights."""
    import bitsandbytes as bnb

    models = []
    for keep in (False, True):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.LlamaConfig(
                vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, intermediate_size=128, max_position_embeddings=256,
            )
        ).eval()  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, layer in list(model.model.named_modules()):
            if not isinstance(layer, torch.nn.Linear):
                continue
            if quantisation == "nf4":
                new: Any = bnb.nn.Linear4bit(
                    layer.in_features, layer.out_features, bias=False, quant_type="nf4"
                )
                new.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
            else:
                new = bnb.nn.Linear8bitLt(
                    layer.in_features, layer.out_features, False, has_fp16_weights=False
                )
                new.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
            new = new.to("cpu")
            if not keep:
                plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
                plain.weight = torch.nn.Parameter(dense_weight(new).float(), requires_grad=False)
                new = plain
            model.model.set_submodule(name, new)
        models.append(model)
    return models[0], models[1]


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="outside the model's 4 layers"):
        Backbone(tiny_model(), AdapterLayout(first_layer=4))
    with pytest.raises(UnsupportedModelError, match="none of the modules"):
        Backbone(tiny_model(), AdapterLayout(modules=("nothing",)))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_trunk_gives_the_same_activations_for_any_number_of_tokens(backend: str) -> None:
    backbone = Backbone(tiny_model("llama"), AdapterLayout(first_layer=2))
    batches = [collate(PROMPTS[:1]), collate(PROMPTS)]
    expected = [backbone.trunk(rows) for rows in batches]
    backbone.compile_trunk(backend)
    for rows, activations in zip(batches, expected, strict=True):
        torch.testing.assert_close(backbone.trunk(rows), activations, atol=1e-5, rtol=1e-5)
    compiled = [layer.mlp._compiled_call_impl is not None for layer in backbone.model.base_model.layers]
    assert compiled == [True, True, False, False]
