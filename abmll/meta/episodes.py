"""Examples that a visit of meta-training trains on.

A visit can show a task in a different way each time: with its options in another order, or in
another template.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from abmll.decoder.rows import packed_length
from abmll.errors import AbmllError, PromptTooLongError
from abmll.seeds import derive_seed
from abmll.text.draws import draw_support, draw_uniformly
from abmll.text.prompting import LabelledPrompt, PromptEncoder, PromptTemplate
from abmll.text.tasks import Example, Task, listed

Likelihood = Literal["options", "tokens"]
Questioner: TypeAlias = Callable[[Example], Sequence[Example]]
"""Returns an example with the questions that it is asked, none where it answers none."""


def fitting_examples(
    encoder: PromptEncoder,
    task: Task,
    size: int,
    max_row_tokens: int,
    seed: int,
    *,
    shuffle: bool = False,
    balanced: bool = True,
    likelihood: Likelihood = "options",
    ask: Questioner | None = None,
) -> list[LabelledPrompt]:
    """Draw `size` examples of a task that have at most `max_row_tokens` each.

    With `ask`, each is as many examples as it is asked questions; those it does not answer are left
    out. There are fewer where the task has no more of them. With `shuffle`, the options of each are
    in a random order. With `balanced`, classes are as equal as the task allows, and otherwise as
    the task has them. With the `likelihood` of `tokens`, every example is free text: its output is
    the only continuation. Raises `AbmllError` where no example fits.
    """
    draw = draw_support if balanced else draw_uniformly
    encoded: list[LabelledPrompt] = []
    for most in (size * 3, len(task.train)):  # the whole task only where no example of a few fits
        drawn: Iterator[Example] = iter(draw(task.train, min(len(task.train), most), seed))
        if shuffle:
            rng = random.Random(derive_seed(seed, "options"))  # noqa: S311 - a reproducible draw, not a secret
            drawn = (shuffle_options(example, rng) for example in drawn)
        if likelihood == "tokens":
            drawn = (
                replace(example, input=encoder.template.shown(example.query), options=()) for example in drawn
            )
        inputs = 0
        for example in drawn:
            found = [
                _encoded(encoder, asked, max_row_tokens) for asked in (ask(example) if ask else [example])
            ]
            fitting = [labelled for labelled in found if labelled is not None]
            encoded += fitting
            inputs += bool(fitting)
            if inputs == size:
                break
        if encoded:
            break
    if not encoded:
        raise AbmllError(f"no example of {task.name} fits {max_row_tokens} tokens")
    return encoded


def _encoded(encoder: PromptEncoder, example: Example, max_row_tokens: int) -> LabelledPrompt | None:
    """Return an example in tokens; None where it has more than `max_row_tokens`."""
    try:
        prompt = encoder.encode_example(example)
    except PromptTooLongError:
        return None
    if packed_length(prompt) > max_row_tokens:
        return None
    return LabelledPrompt(prompt, example.options.index(example.output) if example.options else 0)


def shuffle_options(example: Example, rng: random.Random) -> Example:
    """Return the example with its options in a random order, also where its input lists them.

    Options are scored one by one, so their order matters only where the input shows it.
    """
    options = tuple(rng.sample(example.options, len(example.options)))
    shown = example.input.replace(listed(example.options), listed(options), 1) if options else example.input
    return replace(example, input=shown, options=options)


def choose_encoder(encoder: PromptEncoder, templates: Sequence[PromptTemplate], seed: int) -> PromptEncoder:
    """Return `encoder` with its own template or one of `templates`, all with equal probability.

    It is `encoder` itself where its own template is drawn.
    """
    template = random.Random(seed).choice([encoder.template, *templates])  # noqa: S311 - reproducible, not secret
    return (
        encoder
        if template == encoder.template
        else PromptEncoder(encoder.tokenizer, template, encoder.max_tokens, encoder.tokens)
    )
