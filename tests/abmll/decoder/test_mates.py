"""In bf16 too, a prompt has the same scores alone and beside others, in every order and on every row."""

import pytest
import torch
import transformers

from abmll.decoder import attention
from abmll.decoder.backbone import Backbone
from abmll.decoder.layout import AdapterLayout
from abmll.decoder.rows import Group, by_prompt, collate, group
from abmll.text.prompting import EncodedPrompt
from tests.tiny import CONFIGS

PREFIX = tuple(range(20, 60))
CONTINUATIONS = ((5, 6, 7), (8,), (9, 10))
SHARED = [EncodedPrompt((*PREFIX, *range(60, 61 + 7 * i)), CONTINUATIONS) for i in range(5)]
APART = [EncodedPrompt(tuple(range(100 + i, 103 + 11 * i)), CONTINUATIONS[:2]) for i in range(5)]
# Measured on a CPU with native bf16: 0. With another kernel beside a long row it was 0.05; another
# prompt's tokens, where they are seen, move a score by more than 1.
BOUND = 1e-3


def scores(backbone: Backbone, rows: list[Group]) -> list[torch.Tensor]:
    packed = collate(rows)
    return by_prompt(backbone.log_probs(backbone.trunk(packed), packed, None), packed)


@pytest.mark.parametrize("longest_plain", [512, 100])
def test_scores_in_bf16_do_not_depend_on_mates(longest_plain: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LONGEST_PLAIN_TOKENS", longest_plain)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"](), dtype=torch.bfloat16).eval()
    backbone = Backbone(model, AdapterLayout(first_layer=2))
    long = EncodedPrompt(tuple(i % 300 for i in range(150)), CONTINUATIONS)
    prompts = [*SHARED, *APART, long]
    alone = [scores(backbone, [group([prompt])])[0] for prompt in prompts]
    assert not torch.allclose(alone[0], alone[1], atol=0.1)  # what is beside is another text
    rows = [group(SHARED[:2]), group(SHARED[2:]), *(group([prompt]) for prompt in (*APART, long))]
    for order in (rows, rows[::-1]):
        found = scores(backbone, order)
        members = [prompt for row in order for prompt in row.prompts]
        for prompt, values in zip(members, found, strict=True):
            torch.testing.assert_close(values, alone[prompts.index(prompt)], atol=BOUND, rtol=0)
