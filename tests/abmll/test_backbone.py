"""The split decoder against the whole model, on five architectures."""

from collections.abc import Callable

import pytest
import torch

from abmll.backbone import MODULE_NAMES, AdaptedLinear, Backbone
from abmll.errors import UnsupportedModelError
from abmll.model import FewShotModel
from abmll.noise import mean_samples
from abmll.posterior import AdapterConfig, GlobalPosterior, unflatten
from abmll.prompting import EncodedPrompt
from abmll.rows import Rows, by_row, collate
from tests.tiny import CONFIGS, tiny_model

PROMPTS = [
    EncodedPrompt((5, 6, 7, 8, 9), ((10, 11, 12), (13,), (10, 14))),
    EncodedPrompt((20, 21), ((22, 23), (24, 25, 26, 27))),
    EncodedPrompt(tuple(range(30, 60)), ((61,), (62,))),
]


def reference_scores(model: object, prompt: EncodedPrompt) -> torch.Tensor:
    """Each continuation's log-probability from one whole, unpacked forward pass of the untouched model."""
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
    backbone = Backbone(tiny_model(architecture), AdapterConfig(first_layer=first_layer))
    rows = collate(PROMPTS)
    found = by_row(backbone.log_probs(backbone.trunk(rows), rows, None)[0], rows)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_an_untrained_adapter_without_noise_reproduces_the_base_bit_for_bit(architecture: str) -> None:
    backbone = Backbone(tiny_model(architecture), AdapterConfig(first_layer=1))
    theta = GlobalPosterior.untrained(backbone.config, backbone.sites)
    draw = mean_samples(theta.config, unflatten(theta.values[None], theta.sites, 8)).for_rows(
        torch.zeros(len(PROMPTS), dtype=torch.long), torch.empty(0)
    )
    rows = collate(PROMPTS)
    hidden = backbone.trunk(rows)
    assert torch.equal(backbone.log_probs(hidden, rows, draw), backbone.log_probs(hidden, rows, None))


def test_whole_model_in_bf16_agrees_within_its_rounding() -> None:
    expected = [reference_scores(tiny_model(dtype=torch.bfloat16), prompt) for prompt in PROMPTS]
    backbone = Backbone(tiny_model(dtype=torch.bfloat16), AdapterConfig(first_layer=2))
    rows = collate(PROMPTS)
    found = by_row(backbone.log_probs(backbone.trunk(rows), rows, None)[0], rows)
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
    backbone = Backbone(tiny_model(architecture), AdapterConfig(first_layer=3))
    assert {site.layer for site in backbone.sites} == {3}
    assert sorted(site.module for site in backbone.sites) == sorted(expected)
    wrapped = [name for name, module in backbone.model.named_modules() if isinstance(module, AdaptedLinear)]
    assert len(wrapped) == len(expected)
    assert all(MODULE_NAMES[name.split(".")[-1]] in expected for name in wrapped)


def test_copies_run_one_adapter_each_over_the_same_rows(make_model: Callable[..., FewShotModel]) -> None:
    model = make_model()
    other = model.prior.values * 1.5
    tensors = unflatten(torch.stack([model.prior.values, other]), model.prior.sites, model.prior.config.rank)
    rows: Rows = collate(PROMPTS)
    hidden = model.backbone.trunk(rows)
    samples = mean_samples(model.prior.config, tensors)
    both = model.backbone.log_probs(
        hidden, rows, samples.for_rows(torch.tensor([0, 0, 0, 1, 1, 1]), rows.valid), copies=2
    )
    for copy in (0, 1):
        alone = model.backbone.log_probs(hidden, rows, samples.for_rows(torch.full((3,), copy), rows.valid))
        torch.testing.assert_close(both[copy], alone[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(both[0], both[1])


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="outside the model's 4 layers"):
        Backbone(tiny_model(), AdapterConfig(first_layer=4))
    with pytest.raises(UnsupportedModelError, match="none of the modules"):
        Backbone(tiny_model(), AdapterConfig(modules=("nothing",)))
