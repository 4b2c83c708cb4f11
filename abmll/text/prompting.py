"""Queries as token ids: a prompt once, and every option as a continuation of it.

`text/tokens.py` has the rule by which texts become tokens. Options are scored by their own words,
not by letters: models of less than about a billion parameters do not connect a letter with its
option well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

from abmll.errors import AbmllError, PromptTooLongError
from abmll.text.tasks import Example, Query, check_options, without_listed_options
from abmll.text.tokens import TextTokens

# The score of an option: its log-probability (`total`), its log-probability per token (`mean`), or
# its log-probability per token minus the same in a prompt without input (`pmi`,
# `decoder/option_references.py`).
OptionScore = Literal["total", "mean", "pmi"]
# What is scored of an option with a description: its own text, its description, or one and the
# other.
Described = Literal["name", "description", "both"]


@dataclass(frozen=True)
class PromptTemplate:
    """Texts around an input, and how options are scored.

    A posterior keeps the template that it was trained with. With `bare`, an input that lists its
    own options, `(A) x (B) y`, is shown without the list. An instruction comes behind the input, so
    that several questions about one input share its tokens. `described` says what is scored of an
    option that has a description.

    With the score `pmi`, options of a question with an instruction are compared with what the base
    gives them behind the instruction alone. Where there is no example of the question, they are
    compared with what the global posterior gives them behind the inputs `content_free`, which say
    nothing (Zhao et al. 2021, "Calibrate Before Use"), if there are any.
    """

    before_input: str = ""
    after_input: str = "\nAnswer:"
    before_output: str = " "
    bare: bool = False
    score: OptionScore = "total"
    before_instruction: str = "\n"
    described: Described = "name"
    before_description: str = ": "
    content_free: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a manifest.

        Of the fields that say how instructions and descriptions are shown, it has those that are
        not the default, so that adapters without any keep their ids.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        late = {field.name: field.default for field in fields(self) if field.name in _LATE_FIELDS}
        shown = {name: value for name, value in values.items() if name not in late or value != late[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in shown.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned."""
        return cls(**{**values, "content_free": tuple(values.get("content_free", ()))})

    def shown(self, query: Query) -> str:
        """Return the query's input as the prompt shows it."""
        return without_listed_options(query) if self.bare else query.input

    def asked(self, query: Query) -> str:
        """Return what the prompt shows behind the input."""
        return (self.before_instruction + query.instruction if query.instruction else "") + self.after_input

    def outputs(self, query: Query) -> tuple[str, ...]:
        """Return the texts that are scored behind the prompt, without what separates them from it."""
        if self.described == "name" or not query.descriptions:
            return query.options
        if self.described == "both":
            return meanings(query, self.before_description)
        found = zip(query.options, query.descriptions, strict=True)
        return tuple(description or option for option, description in found)


# Fields that templates had not from the start.
_LATE_FIELDS = ("before_instruction", "described", "before_description", "content_free")


def meanings(query: Query, separator: str = ": ") -> tuple[str, ...]:
    """Return each option of `query` with its description behind it, where it has one."""
    described = zip(query.options, query.descriptions, strict=True) if query.descriptions else ()
    found = tuple(f"{option}{separator}{text}" if text else option for option, text in described)
    return found or query.options


# Default for training and for serving. The defaults of the class are for artifacts whose manifest
# has no template.
RECOMMENDED_TEMPLATE = PromptTemplate(bare=True, score="pmi")


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a prompt and of its continuations, the texts that are scored behind it.

    A free-text query has no continuations. `neutral` is the prompt without input, where the score
    `pmi` compares with it, and otherwise empty. `content_free` are the same with inputs that say
    nothing, where it compares with these; an example has none. With `per_token`, a score is a mean
    over tokens. `text` is the input of the prompt. `options` are the texts of the continuations,
    where these are options, and `meanings` the same with their descriptions. `question` are the
    tokens at the end of the prompt that are not the input's; they are empty without an instruction.
    `declinable` is that of the query.
    """

    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...] = ()
    neutral: tuple[int, ...] = ()
    content_free: tuple[tuple[int, ...], ...] = ()
    per_token: bool = False
    text: str = ""
    options: tuple[str, ...] = ()
    meanings: tuple[str, ...] = ()
    question: tuple[int, ...] = ()
    declinable: bool = False

    @property
    def tokens(self) -> int:
        """Return the number of tokens of the prompt and all continuations."""
        return len(self.prompt) + sum(map(len, self.continuations))

    @property
    def input_tokens(self) -> int:
        """Return the number of tokens at the beginning of the prompt that depend on no question."""
        return len(self.prompt) - len(self.question)

    @property
    def described(self) -> bool:
        """Return whether some options have descriptions."""
        return self.meanings != self.options


def by_question(prompts: Sequence[EncodedPrompt]) -> dict[tuple[int, ...], list[int]]:
    """Return the numbers of the prompts of each question, by its tokens, in order of appearance."""
    found: dict[tuple[int, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        found.setdefault(prompt.question, []).append(number)
    return found


def options_differ(prompts: Sequence[EncodedPrompt]) -> bool:
    """Return whether two prompts have different continuations, apart from their order."""
    return any(set(prompt.continuations) != set(prompts[0].continuations) for prompt in prompts)


class PromptEncoder:
    """Encoder of queries and examples with one tokenizer and one template.

    The ids of a prompt and of a continuation, joined, are those of the joint text (`TextTokens`).

    It has no state after construction, so threads may share it. `max_tokens` is the context: a
    prompt must fit it together with all its continuations, which are packed behind it.
    `tokens` is the rule of `tokenizer`, where it was made before. Raises `AbmllError` for a
    template that has the score `pmi` and no text around the input, and `UnsupportedModelError` as
    `TextTokens`.
    """

    def __init__(
        self, tokenizer: Any, template: PromptTemplate, max_tokens: int, tokens: TextTokens | None = None
    ) -> None:
        self.tokenizer, self.template, self.max_tokens = tokenizer, template, max_tokens
        self.tokens = tokens or TextTokens(tokenizer)
        self.end_of_text = self.tokens.end_of_text
        self._neutral = self.tokens.first(template.before_input + template.after_input)
        self._nothing = self.tokens.first(template.before_input)
        self._content_free = [
            self.tokens.first(template.before_input + text) for text in template.content_free
        ]
        if template.score == "pmi" and not self._neutral:
            raise AbmllError(
                "the score `pmi` compares with the prompt without input, which this template leaves empty"
            )

    def encode(self, query: Query, *, truncate: bool = False, max_new_tokens: int = 0) -> EncodedPrompt:
        """Return a query's prompt and options in tokens.

        With `truncate`, the end of an input that is too long is cut off. A free-text prompt leaves
        room for `max_new_tokens`. Raises `OptionsError` for options that cannot be scored, and
        `PromptTooLongError` where the prompt does not fit.
        """
        if query.options:
            check_options(query.options)
        template, room = self.template, 0 if query.options else max_new_tokens
        encoded = self._fit(
            template.shown(query), query, self._continuations(template.outputs(query)), truncate, room
        )
        encoded = replace(
            encoded, options=query.options, meanings=meanings(query), declinable=query.declinable
        )
        if not query.options or template.score == "total":
            return encoded
        encoded = replace(encoded, per_token=True)
        if template.score == "mean":
            return encoded
        if not encoded.question:
            return replace(encoded, neutral=self._neutral)
        content_free = tuple((*ids, *encoded.question) for ids in self._content_free)
        return replace(encoded, neutral=(*self._nothing, *encoded.question), content_free=content_free)

    def encode_example(self, example: Example, *, truncate: bool = False) -> EncodedPrompt:
        """Return an example's prompt and continuations in tokens; raises as `encode` does.

        A free-text example has one continuation: its output and the end-of-text token.
        """
        if example.options:
            return replace(self.encode(example.query, truncate=truncate), content_free=())
        (output,) = self._continuations((example.output,))
        return self._fit(example.input, example.query, ((*output, self.end_of_text),), truncate, 0)

    def decode(self, ids: tuple[int, ...]) -> str:
        """Return the text of generated ids, as `TextTokens.decode`."""
        return self.tokens.decode(ids)

    def _continuations(self, texts: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        return tuple(self.tokens.behind(self.template.before_output + text.strip()) for text in texts)

    def _fit(
        self,
        text: str,
        query: Query,
        continuations: tuple[tuple[int, ...], ...],
        truncate: bool,
        room_for_answer: int,
    ) -> EncodedPrompt:
        template = self.template
        # The tokens of an input do not depend on the question behind it, which begins with space.
        question = self.tokens.behind(template.asked(query)) if query.instruction else ()
        if question:
            prompt = self.tokens.first(template.before_input + text) + question
        else:
            prompt = self.tokens.first(template.before_input + text + template.after_input)
        room = self.max_tokens - room_for_answer - sum(map(len, continuations))
        if len(prompt) > room:
            if not truncate:
                raise PromptTooLongError(len(prompt) + self.max_tokens - room, self.max_tokens)
            tail = question or self.tokens.behind(template.after_input)
            if room <= len(tail):
                raise PromptTooLongError(len(tail) + 1 + self.max_tokens - room, self.max_tokens)
            prompt = self.tokens.first(template.before_input + text)[: room - len(tail)] + tail
        return EncodedPrompt(prompt, continuations, text=text, question=question)


@dataclass(frozen=True)
class LabelledPrompt:
    """Support example in tokens. `label` is the index of its output among the continuations."""

    prompt: EncodedPrompt
    label: int
