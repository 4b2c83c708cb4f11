"""Log-probabilities of tokens, block by block, against the log-softmax of all logits."""

import pytest
import torch

from abmll.decoder import vocabulary
from abmll.decoder.vocabulary import token_log_probs


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
