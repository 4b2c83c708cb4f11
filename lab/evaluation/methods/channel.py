"""Channel scoring (Min et al. 2022): how probable is the input behind each option?

p(option | input) is proportional to p(input | demonstrations, option): before the input is seen,
all options are equally probable.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from abmll.model import FewShotModel
from abmll.text.demonstrations import SEPARATOR
from abmll.text.prompting import EncodedPrompt, PromptEncoder
from abmll.text.tasks import Example, Query
from lab.evaluation.cells import Answer, Effort
from lab.evaluation.methods.contract import Method
from lab.evaluation.methods.scoring import log_probs


def channel_prompt(
    support: Sequence[Example], query: Query, option: str, encoder: PromptEncoder, max_tokens: int
) -> EncodedPrompt:
    """Return a prompt of demonstrations and the option, with the input as its continuation.

    A demonstration has its label before its input. There are as many as fit. An input that does not
    fit even alone is cut at its end.
    """
    tokens, shown_in = encoder.tokens, encoder.template.shown
    limit = min(max_tokens, encoder.max_tokens)
    text = tokens.behind(shown_in(query))

    def prompt(count: int) -> tuple[int, ...]:
        shown = "".join(
            f"{example.output}\n{shown_in(example.query)}{SEPARATOR}" for example in support[:count]
        )
        return tokens.first(f"{shown}{option}\n")

    count = bisect_right(range(1, len(support) + 1), False, key=lambda n: len(prompt(n)) + len(text) > limit)
    ids = prompt(count)
    return EncodedPrompt(ids, (text[: max(1, limit - len(ids))],))


@dataclass(frozen=True)
class Channel(Method):
    """Answers by channel scoring; `demonstrations` False scores without the support."""

    kind: Literal["channel"] = "channel"
    demonstrations: bool = True
    max_tokens: int = 2048

    def answer(
        self, model: FewShotModel, support: Sequence[Example], queries: Sequence[Query], seed: int
    ) -> tuple[list[Answer], Effort]:
        """See `Method`."""
        shown = support if self.demonstrations else ()
        prompts = [
            channel_prompt(shown, query, option, model.encoder, self.max_tokens)
            for query in queries
            for option in query.options
        ]
        scores = iter(log_probs(model, prompts))
        answers = [
            Answer(tuple(torch.tensor([next(scores)[0] for _ in query.options]).double().softmax(0).tolist()))
            for query in queries
        ]
        return answers, Effort(tokens=sum(prompt.tokens for prompt in prompts))
