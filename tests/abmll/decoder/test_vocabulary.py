"""Log-probabilities of tokens, block by block, against the log-softmax of all logits."""

import pytest
import torch

from abmll.decoder import vocabulary
from abmll.decoder.vocabulary import changed_log_probs, normaliser, token_log_probs


@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_the_log_softmax(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "BLOCK_TOKENS", 3)
    monkeypatch.setattr(vocabulary, "BLOCK_WORDS", 7)
    torch.manual_seed(1)
    head = torch.nn.Linear(5, 40, bias=bias).double().requires_grad_(False)
    states = (30 * torch.randn(8, 5)).double().requires_grad_()
    place, target = torch.tensor([0, 2, 2, 7]), torch.tensor([39, 0, 7, 6])
    weights = torch.tensor([1.0, -0.5, 2.0, 3.0])
    expected = head(states).log_softmax(-1)[place, target]
    found = token_log_probs(states, head, place, target)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), states)
    (gradient,) = torch.autograd.grad((found * weights).sum(), states)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)
    assert gradient.abs().max() > 0.1


def test_a_bf16_head_gives_fp32_values_within_the_rounding_of_its_logits() -> None:
    torch.manual_seed(2)
    head = torch.nn.Linear(64, 3000, bias=False).to(torch.bfloat16).requires_grad_(False)
    states = torch.randn(600, 64).to(torch.bfloat16)
    place, target = torch.arange(600), torch.randint(0, 3000, (600,))
    exact = (states.double() @ head.weight.double().T).log_softmax(-1)[place, target]
    found = token_log_probs(states, head, place, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-3)


def test_changed_log_probs_are_exact_where_all_words_are_kept_and_near_where_some_are() -> None:
    torch.manual_seed(3)
    head = torch.nn.Linear(16, 300, bias=True).requires_grad_(False)
    states, moves = 4 * torch.randn(70, 16), 0.3 * torch.randn(5, 70, 16)
    place, target = torch.arange(70).flip(0), torch.randint(0, 300, (70,))
    exact = head(states + moves).log_softmax(-1)[:, place, target]
    gaps = []
    for words in (300, 60, 5):
        known = normaliser(states, head, words)
        found = changed_log_probs(known, states, lambda rows: moves[:, rows], head, place, target)
        gaps.append(float((found - exact).abs().max()))
    assert gaps[0] < 1e-4
    assert gaps[0] < gaps[1] < gaps[2] < 0.5
    assert (exact - head(states).log_softmax(-1)[place, target]).abs().max() > 0.5
    parts = normaliser(states, head, 60).split([30, 40])
    assert [len(part.log) for part in parts] == [30, 40]
