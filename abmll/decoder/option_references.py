"""Option references: what an option scores without the input, and the length of its text.

For any input, a longer text is less probable than a shorter one, and a rare text less probable than
a common one: options compete by their surface form (Holtzman et al. 2021, "Surface Form
Competition"). The domain-conditional pointwise mutual information, log p(option | input) - log
p(option | no input), removes what is common to all inputs. The mean over an option's tokens removes
its length. The option without input is scored by the base alone, so its score is a constant of the
option. Behind an instruction, where the template has inputs that say nothing, it is scored by the
global posterior there, which is a constant too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.decoder import passes
from abmll.decoder.backbone import Backbone
from abmll.decoder.passes import Pace, Resting, finish
from abmll.decoder.rows import by_prompt, collate, packed_length, token_batches
from abmll.text.prompting import EncodedPrompt

# Tokens of one pass over the prompts without input.
TOKENS_PER_PASS = 2048
# Sets of options whose scores without input a backbone keeps: a few floats each.
MOST_REMEMBERED = 4096


@dataclass(frozen=True)
class OptionReference:
    """Offset and length by which the log-probabilities of a prompt's continuations become scores.

    Both are [continuations]: `offset` in nats, or 0, and `length` in tokens, or 1.
    """

    offset: Tensor
    length: Tensor

    def score(self, log_probs: Tensor) -> Tensor:
        """Return scores [..., continuations], in the shape of `log_probs`."""
        return (log_probs - self.offset) / self.length

    def cpu(self) -> OptionReference:
        """Return a copy on the CPU."""
        return OptionReference(self.offset.cpu(), self.length.cpu())

    @classmethod
    def joined(cls, references: Sequence[OptionReference]) -> OptionReference:
        """Return the reference of all continuations of `references`, in their order."""
        return cls(torch.cat([r.offset for r in references]), torch.cat([r.length for r in references]))


def option_references(
    backbone: Backbone, prompts: Sequence[EncodedPrompt], *, remember: bool = False
) -> list[OptionReference]:
    """Return the reference of each prompt's continuations, for the score of its template.

    Runs the base, or the global posterior, once over each different set of options that is to be
    scored without input. With `remember`, results are kept in `backbone.offsets` and read from
    there. Prediction uses this, because the same options come again and again.
    """
    return finish(resting_references(backbone, prompts, None, remember=remember))


def resting_references(
    backbone: Backbone, prompts: Sequence[EncodedPrompt], pace: Pace | None, *, remember: bool = False
) -> Resting[list[OptionReference]]:
    """Return what `option_references` does, with rests."""
    offsets = backbone.offsets if remember else {}
    asked = dict.fromkeys(key for prompt in prompts if prompt.neutral for key in without_input(prompt))
    found = {prompt: offsets[prompt] for prompt in asked if prompt in offsets}
    found |= yield from _log_probs(backbone, [prompt for prompt in asked if prompt not in found], pace)
    offsets.update(found)
    while len(offsets) > MOST_REMEMBERED:
        del offsets[next(iter(offsets))]
    made = []
    for prompt in prompts:
        lengths = [len(ids) if prompt.per_token else 1 for ids in prompt.continuations]
        length = torch.tensor(lengths, dtype=torch.float32, device=backbone.device)
        offset = torch.zeros_like(length)
        if prompt.neutral:
            offset = torch.stack([found[key] for key in without_input(prompt)]).mean(0)
        made.append(OptionReference(offset, length))
    return made


@torch.no_grad()
def _log_probs(
    backbone: Backbone, prompts: Sequence[EncodedPrompt], pace: Pace | None
) -> Resting[dict[EncodedPrompt, Tensor]]:
    """Return log-probabilities [continuations] of each prompt's continuations without input."""
    found: dict[EncodedPrompt, Tensor] = {}
    most = TOKENS_PER_PASS if pace is None else passes.BLOCK_TOKENS
    for by_global in (False, True):
        alike = [prompt for prompt in prompts if bool(prompt.question) == by_global]
        for chunk in token_batches([packed_length(prompt) for prompt in alike], most):
            rows = collate([alike[i] for i in chunk], backbone.device)
            draw = backbone.global_draw(rows) if by_global and backbone.global_draw else None
            hidden = yield from passes.trunk(backbone, rows, pace)
            values = by_prompt((yield from passes.log_probs(backbone, hidden, rows, draw, pace)), rows)
            found.update(zip((alike[i] for i in chunk), values, strict=True))
    return found


def without_input(prompt: EncodedPrompt) -> list[EncodedPrompt]:
    """Return what a prompt's options are scored behind for their reference.

    Those that the global posterior scores have a question.
    """
    if not prompt.content_free:
        return [EncodedPrompt(prompt.neutral, prompt.continuations)]
    return [EncodedPrompt(ids, prompt.continuations, question=prompt.question) for ids in prompt.content_free]
