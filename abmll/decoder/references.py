"""What an option scores: the log-probability of its text, or that per token and beyond what the text has anyway.

Whatever is asked, a longer text is less probable than a shorter one, and a rare one than a common one: options compete by
their surface (Holtzman et al. 2021, "Surface Form Competition"). Their domain-conditional pointwise mutual information,
log p(option | input) - log p(option | no input), takes out what is common to all inputs; the mean over an option's tokens
takes out its length. The text behind no input is scored by the base model as it is, so it is a constant of the option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.decoder.backbone import Backbone
from abmll.decoder.rows import by_prompt, collate, packed_length, token_batches
from abmll.text.prompting import EncodedPrompt

# Tokens of one pass over the prompts without input.
TOKENS_PER_PASS = 2048
# Sets of options of which a backbone keeps what they have behind no input: a few floats each.
MOST_REMEMBERED = 4096


@dataclass(frozen=True)
class OptionReference:
    """What log-probabilities [continuations] of a prompt are measured by: `offset` in nats, `length` in tokens (or 0 and 1)."""

    offset: Tensor
    length: Tensor

    def score(self, log_probs: Tensor) -> Tensor:
        """[..., continuations] to the same."""
        return (log_probs - self.offset) / self.length

    def cpu(self) -> OptionReference:
        """The same in the processor's memory."""
        return OptionReference(self.offset.cpu(), self.length.cpu())

    @classmethod
    def joined(cls, references: Sequence[OptionReference]) -> OptionReference:
        """That of all their continuations in order."""
        return cls(torch.cat([r.offset for r in references]), torch.cat([r.length for r in references]))


def option_references(
    backbone: Backbone, prompts: Sequence[EncodedPrompt], *, remember: bool = False
) -> list[OptionReference]:
    """What the continuations of each prompt are measured by, as its template asks (`PromptTemplate.score`).

    Runs the base model once over each different set of options that is to be compared with no input. `remember` looks up and
    keeps what it finds in `backbone.offsets`: for prediction, which meets the same options again and again.
    """
    offsets = backbone.offsets if remember else {}
    asked = dict.fromkeys(_without_input(prompt) for prompt in prompts if prompt.neutral)
    found = {prompt: offsets[prompt] for prompt in asked if prompt in offsets}
    found |= _log_probs(backbone, [prompt for prompt in asked if prompt not in found])
    offsets.update(found)
    while len(offsets) > MOST_REMEMBERED:
        del offsets[next(iter(offsets))]
    made = []
    for prompt in prompts:
        lengths = [len(ids) if prompt.per_token else 1 for ids in prompt.continuations]
        length = torch.tensor(lengths, dtype=torch.float32, device=backbone.device)
        offset = found[_without_input(prompt)] if prompt.neutral else torch.zeros_like(length)
        made.append(OptionReference(offset, length))
    return made


@torch.no_grad()
def _log_probs(backbone: Backbone, prompts: Sequence[EncodedPrompt]) -> dict[EncodedPrompt, Tensor]:
    """Of every prompt's continuations [continuations] under the base model alone."""
    found: dict[EncodedPrompt, Tensor] = {}
    for chunk in token_batches([packed_length(prompt) for prompt in prompts], TOKENS_PER_PASS):
        rows = collate([prompts[i] for i in chunk], backbone.device)
        values = by_prompt(backbone.log_probs(backbone.trunk(rows), rows, None), rows)
        found.update(zip((prompts[i] for i in chunk), values, strict=True))
    return found


def _without_input(prompt: EncodedPrompt) -> EncodedPrompt:
    return EncodedPrompt(prompt.neutral, prompt.continuations)
