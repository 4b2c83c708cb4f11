"""A support ready for gradient steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.decoder import passes
from abmll.decoder.backbone import Backbone
from abmll.decoder.option_references import OptionReference, resting_references
from abmll.decoder.passes import Pace, Resting, finish
from abmll.decoder.rows import Group, collate, group, packed_length, rows_of_inputs, token_batches
from abmll.similarity.class_examples import ClassExamples
from abmll.similarity.features import Features
from abmll.text.prompting import EncodedPrompt, LabelledPrompt, by_question, options_differ

# Tokens of one trunk pass.
TOKENS_PER_TRUNK = 2048


@dataclass(frozen=True)
class Prepared:
    """A support, with what is computed once for all steps.

    `rows` has the numbers of the examples of each row: those that ask about one input share its
    tokens. `hidden` has the trunk activations [tokens, d] of each row, and `references` the option
    reference of each example.
    """

    examples: Sequence[LabelledPrompt]
    rows: Sequence[Sequence[int]]
    hidden: Sequence[Tensor]
    references: Sequence[OptionReference]

    def group(self, row: int) -> Group:
        """Return the prompts of a row."""
        return group([self.examples[i].prompt for i in self.rows[row]])

    def class_examples(self, features: Features) -> tuple[ClassExamples, ...]:
        """Return what the Gaussian process of each question with fixed classes learns from."""
        prompts = [example.prompt for example in self.examples]
        states = {
            i: own
            for row, members in enumerate(self.rows)
            for i, own in zip(members, self.group(row).prompt_states(self.hidden[row]), strict=True)
        }
        found = []
        for numbers in by_question(prompts).values():
            hidden, labels = [states[i] for i in numbers], [self.examples[i].label for i in numbers]
            found.append(ClassExamples.of([prompts[i] for i in numbers], hidden, labels, features))
        return tuple(examples for examples in found if examples is not None)

    @property
    def questions(self) -> int:
        """Return the number of different questions."""
        return len(by_question([example.prompt for example in self.examples]))

    @property
    def multiple_choice(self) -> bool:
        """Return whether every example has options, and they differ for one question."""
        prompts = [example.prompt for example in self.examples]
        return all(len(prompt.continuations) > 1 for prompt in prompts) and any(
            options_differ([prompts[i] for i in numbers]) for numbers in by_question(prompts).values()
        )

    def tokens(self, chosen: Sequence[int]) -> int:
        """Return the number of tokens of the chosen rows."""
        return sum(len(self.hidden[row]) for row in chosen)


class Preparation:
    """What is computed once for a support, one chunk of rows at a time.

    A chunk has at most `max_tokens`, or one longer row.
    """

    def __init__(self, examples: Sequence[LabelledPrompt], max_tokens: int = TOKENS_PER_TRUNK) -> None:
        self._examples = examples
        prompts = [example.prompt for example in examples]
        self._rows = rows_of_inputs(prompts)
        self._groups = [group([prompts[i] for i in row]) for row in self._rows]
        self._lengths = [row.tokens for row in self._groups]
        self._chunks = token_batches(self._lengths, max_tokens)
        self._hidden: list[Tensor] = [torch.empty(0)] * len(self._rows)
        self._references: dict[int, OptionReference] = {}

    @property
    def done(self) -> bool:
        """Return whether every row is prepared."""
        return not self._chunks

    @property
    def next_tokens(self) -> int:
        """Return the tokens of the next chunk."""
        return sum(self._lengths[i] for i in self._chunks[0])

    @property
    def held_tokens(self) -> int:
        """Return the tokens that the next chunk holds in memory, which `shrink` makes fewer."""
        return self.next_tokens

    def shrink(self, max_tokens: int) -> None:
        """Prepare the rest in chunks of at most `max_tokens`, or one longer row."""
        left = [i for chunk in self._chunks for i in chunk]
        batches = token_batches([self._lengths[i] for i in left], max_tokens)
        self._chunks = [[left[k] for k in batch] for batch in batches]

    def advance(self, backbone: Backbone) -> None:
        """Run the trunk, and the base model where options need a reference, over the next chunk."""
        finish(self.chunk(backbone, None))

    def chunk(self, backbone: Backbone, pace: Pace | None) -> Resting[None]:
        """Do what `advance` does, with rests. The chunk counts once all of it is done."""
        chunk = self._chunks[0]
        rows = collate([self._groups[row] for row in chunk], backbone.device)
        hidden = (yield from passes.trunk(backbone, rows, pace)).split(rows.lengths)
        numbers = [i for row in chunk for i in self._rows[row]]
        prompts = [self._examples[i].prompt for i in numbers]
        references = yield from resting_references(backbone, prompts, pace, remember=True)
        self._references.update(zip(numbers, references, strict=True))
        for row, states in zip(chunk, hidden, strict=True):
            self._hidden[row] = states
        self._chunks.pop(0)

    def result(self) -> Prepared:
        """Return the prepared support. Only once `done`."""
        references = [self._references[i] for i in range(len(self._examples))]
        return Prepared(self._examples, self._rows, self._hidden, references)


def prepare(
    backbone: Backbone,
    examples: Sequence[LabelledPrompt],
    max_tokens: int = TOKENS_PER_TRUNK,
) -> Prepared:
    """Prepare the whole support, in chunks of at most `max_tokens`."""
    preparation = Preparation(examples, max_tokens)
    while not preparation.done:
        preparation.advance(backbone)
    return preparation.result()


def trunk_states(
    backbone: Backbone, prompts: Sequence[EncodedPrompt], max_tokens: int = TOKENS_PER_TRUNK
) -> list[Tensor]:
    """Return the trunk's states [tokens, d] of each prompt with its continuations.

    They are computed in passes of at most `max_tokens`.
    """
    hidden: list[Tensor] = [torch.empty(0)] * len(prompts)
    for chunk in token_batches([packed_length(prompt) for prompt in prompts], max_tokens):
        rows = collate([prompts[i] for i in chunk], backbone.device)
        for i, states in zip(chunk, backbone.trunk(rows).split(rows.lengths), strict=True):
            hidden[i] = states
    return hidden
