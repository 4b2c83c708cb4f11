"""In bf16 too, a prompt has the same scores alone and beside others, in every order and on every
row.
"""

from collections.abc import Callable

import pytest
import torch
import transformers

from abmll.decoder import attention
from abmll.decoder.backbone import Backbone
from abmll.decoder.layout import AdapterLayout
from abmll.decoder.rows import Group, by_prompt, collate, group
from abmll.posterior.noise.draws import means
from abmll.posterior.posteriors import GlobalPosterior
from abmll.text.prompting import EncodedPrompt
from tests.tiny import CONFIGS, make_config

PREFIX = tuple(range(20, 60))
CONTINUATIONS = ((5, 6, 7), (8,), (9, 10))
SHARED = [EncodedPrompt((*PREFIX, *range(60, 61 + 7 * i)), CONTINUATIONS) for i in range(5)]
APART = [EncodedPrompt(tuple(range(100 + i, 103 + 11 * i)), CONTINUATIONS[:2]) for i in range(5)]
# Measured on a CPU with native bf16: 0. With another kernel beside a long row it was 0.05; another
# prompt's tokens, where they are seen, move a score by more than 1.
BOUND = 1e-3


def plain_scores(backbone: Backbone, rows: list[Group]) -> list[torch.Tensor]:
    packed = collate(rows)
    return by_prompt(backbone.log_probs(backbone.trunk(packed), packed, None), packed)


def readout_scores(backbone: Backbone, rows: list[Group]) -> list[torch.Tensor]:
    """Return the scores under one sample that differs from the base in the readout alone."""
    packed = collate(rows)
    theta = GlobalPosterior.untrained(make_config(first_layer=2), backbone.sites)
    draw = means(theta.config, backbone.sites, theta.values[None]).for_rows([0] * len(rows), packed.lengths)
    readout = backbone.readout(backbone.trunk(packed), packed, draw)
    site, generator = backbone.sites[-1], torch.Generator().manual_seed(3)
    weight = 0.1 * torch.randn(site.d_out, site.d_in, generator=generator)
    (found,) = backbone.readout_log_probs(readout, lambda x: (x.float() @ weight.T)[None], packed)
    return by_prompt(found, packed)


@pytest.mark.parametrize("longest_plain", [512, 100])
@pytest.mark.parametrize("scores", [plain_scores, readout_scores])
def test_scores_in_bf16_do_not_depend_on_mates(
    scores: Callable[[Backbone, list[Group]], list[torch.Tensor]],
    longest_plain: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
