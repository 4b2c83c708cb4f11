"""Passes that rest against whole passes: their states, scores, readouts and gradients."""

from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from torch import Tensor

from abmll.decoder import attention, passes
from abmll.decoder.attention import BlockLayout, BlockView, Layout, packed_attention
from abmll.decoder.backbone import Backbone, Call
from abmll.decoder.layout import AdapterLayout, SiteTensors, unflatten
from abmll.decoder.passes import Pace, finish
from abmll.decoder.rows import Rows, collate, group
from abmll.model import FewShotModel
from abmll.posterior.noise.families import family_of
from abmll.posterior.noise.point import mean_samples
from abmll.text.prompting import EncodedPrompt
from tests.tiny import CONFIGS, tiny_model

LONG = EncodedPrompt(tuple(range(30, 60)), ((61, 62, 7), (62,), (9, 8, 7, 6, 5, 4, 3, 2, 10, 11, 12), (3, 4)))
SHARED = [
    EncodedPrompt((*range(40, 60), *own), ((1, 2), (3,)))
    for own in ((7, 8, 9), (5,), (6, 5, 4, 3, 2, 1, 9, 8))
]
BATCHES = {
    "one row": [LONG],
    "plain text": [EncodedPrompt(tuple(range(100, 150)), ((1,),))],
    "shared prefix": [group(SHARED)],
    "several rows": [LONG, *SHARED],
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "BLOCK_TOKENS", 8)
    monkeypatch.setattr(passes, "SCORED_AT_ONCE", 3)
    monkeypatch.setattr(attention, "STRIP_TOKENS", 4)


def batch_of(name: str) -> Rows:
    return collate(BATCHES[name])


def rests(work: Generator[None, None, Any], backbone: Backbone) -> tuple[int, Any]:
    """Return how often `work` rests, and its result; nothing is set on the backbone in a rest."""
    count = 0
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return count, stop.value
        assert backbone._call == Call()
        count += 1


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_scores_with_rests_are_those_of_the_whole_pass(architecture: str, batch: str) -> None:
    backbone = Backbone(tiny_model(architecture), AdapterLayout(first_layer=2))
    rows = batch_of(batch)
    hidden = backbone.trunk(rows)
    expected = backbone.log_probs(hidden, rows, None)
    in_trunk, found_hidden = rests(passes.trunk(backbone, rows, Pace(1)), backbone)
    in_top, found = rests(passes.log_probs(backbone, hidden, rows, None, Pace(1)), backbone)
    blocks = 1 if batch == "several rows" else -(-len(hidden) // 8)
    assert in_trunk == 2 * blocks - 1
    assert in_top == 2 * blocks + -(-len(rows.scored) // 3) - 1
    torch.testing.assert_close(found_hidden, hidden, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch", BATCHES)
def test_in_bf16_they_agree_within_its_rounding(batch: str) -> None:
    backbone = Backbone(tiny_model(dtype=torch.bfloat16), AdapterLayout(first_layer=2))
    rows = batch_of(batch)
    hidden = backbone.trunk(rows)
    found = finish(passes.log_probs(backbone, hidden, rows, None, Pace(1)))
    torch.testing.assert_close(found, backbone.log_probs(hidden, rows, None), atol=0.15, rtol=0.02)


@pytest.mark.parametrize("most", [1, 60, 1e9])
@pytest.mark.parametrize("batch", BATCHES)
def test_a_readout_with_rests_is_that_of_the_whole_pass(
    most: float, batch: str, make_model: Callable[..., FewShotModel]
) -> None:
    model = make_model()
    backbone, rows = model.backbone, batch_of(batch)
    means = mean_samples(backbone.layout, unflatten(model.prior.values[None], backbone.sites, 4))
    draw = means.for_rows([0] * len(rows.lengths), rows.lengths)
    hidden = backbone.trunk(rows)
    expected = backbone.readout(hidden, rows, draw)
    found = finish(passes.readout(backbone, hidden, rows, draw, Pace(most)))
    for one, other in (
        (found.states, expected.states),
        (found.inputs, expected.inputs),
        (found.normaliser.log, expected.normaliser.log),
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("most", [1, 100])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_a_gradient_with_rests_is_that_of_the_whole_pass(
    architecture: str, batch: str, most: float, keep: bool, make_model: Callable[..., FewShotModel]
) -> None:
    model = make_model(architecture)
    backbone, config, rows = model.backbone, model.prior.config, batch_of(batch)
    hidden = backbone.trunk(rows)

    def draw_of(phi: list[SiteTensors]) -> Any:
        return family_of(config.noise).training_draw(
            config, backbone.sites, phi, seeds=range(len(rows.lengths)), task_of_row=[0] * len(rows.lengths),
            row_tokens=rows.lengths, dtype=hidden.dtype,
        )  # fmt: skip

    def loss(scores: Tensor) -> Tensor:
        return scores.sin() * torch.arange(1.0, 1.0 + len(scores))

    values = model.prior.values[None].clone().requires_grad_()
    whole = loss(backbone.log_probs(hidden, rows, draw_of(unflatten(values, backbone.sites, 4))))
    (expected,) = torch.autograd.grad(whole.sum(), values)

    phi = [
        SiteTensors(*(tensor.detach().requires_grad_() for tensor in vars(site).values()))
        for site in unflatten(values.detach(), backbone.sites, 4)
    ]
    leaves = [list(vars(site).values()) for site in phi]
    work = passes.gradient(backbone, hidden, rows, draw_of(phi), loss, leaves, Pace(most), keep=keep)
    count, found = rests(work, backbone)
    assert count > 3
    torch.testing.assert_close(found, whole.detach(), atol=1e-4, rtol=1e-4)
    gradient = torch.cat([leaf.grad.flatten() for own in leaves for leaf in own])
    torch.testing.assert_close(gradient, expected[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kernel", ["fused", "by head"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("batch", ["one row", "plain text", "shared prefix"])
def test_attention_in_blocks_is_attention_with_the_dense_mask(
    batch: str, groups: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(0)
    rows = batch_of(batch)
    tokens = len(rows.input_ids)
    query = torch.randn(1, 6, tokens, 8, generator=g, requires_grad=True)
    key, value = (torch.randn(1, 6 // groups, tokens, 8, generator=g, requires_grad=True) for _ in "kv")
    if kernel == "by head":
        monkeypatch.setattr(attention, "BY_HEAD", torch.float32)

    def blocks() -> Tensor:
        parts, past = [], None
        for start in range(0, tokens, 7):
            span = slice(start, min(start + 7, tokens))
            layout = BlockLayout(BlockView.of(rows, span), past)
            q, k, v = (tensor[:, :, span] for tensor in (query, key, value))
            output, _ = packed_attention(torch.nn.Module(), q, k, v, None, scaling=0.3, layout=layout)
            parts.append(output)
            past = layout.all
        return torch.cat(parts, 1)

    def dense() -> Tensor:
        layout = Layout.of(rows, torch.float32)
        return packed_attention(torch.nn.Module(), query, key, value, None, scaling=0.3, layout=layout)[0]

    weight = torch.randn(1, tokens, 6, 8, generator=g)
    results = [
        (y, *torch.autograd.grad((y * weight).sum(), (query, key, value))) for y in (blocks(), dense())
    ]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_block_of_an_option_reads_only_the_keys_of_its_prompt_and_its_own() -> None:
    """So 128 options of 500 words cost 128 options, not the square of their length."""
    rows = collate([EncodedPrompt((1,) * 20, tuple((2,) * 41 for _ in range(10)))])
    views = [BlockView.of(rows, slice(start, start + 40)) for start in range(20, 420, 40)]
    assert [view.keys for view in views] == [60] * 10
    assert all(view.visible is None for view in views), "one part: the mask is a triangle"


def test_a_pace_rests_where_the_next_piece_would_be_too_much() -> None:
    pace = Pace(10)
    assert [pace.due(work) for work in (4, 6, 1, 20, 3, 7, 4)] == [
        False,
        False,
        True,
        True,
        True,
        False,
        True,
    ]
