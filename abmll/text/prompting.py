"""Text to token ids: a prompt once, and every option as its continuation.

Options are scored by their own words; models below about a billion parameters bind letters poorly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from abmll.errors import AbmllError, PromptTooLongError
from abmll.text.tasks import Example, Query, check_options, without_listed_options

# What an option scores: its log-probability, that per token, or that per token beyond what the option has
# behind no input (`decoder/references.py`).
OptionScore = Literal["total", "mean", "pmi"]


@dataclass(frozen=True)
class PromptTemplate:
    """The texts around an input, and how options are asked for and scored; kept with a posterior, which was trained with them.

    `bare` asks an input that lists its own options, `(A) x (B) y`, without the list.
    """

    before_input: str = ""
    after_input: str = "\nAnswer:"
    before_output: str = " "
    bare: bool = False
    score: OptionScore = "total"

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(**values)

    def shown(self, query: Query) -> str:
        """The query's input as the prompt has it."""
        return without_listed_options(query) if self.bare else query.input


# What to train or serve with unless told otherwise. The class's own defaults are those of artifacts that do not say.
RECOMMENDED_TEMPLATE = PromptTemplate(bare=True, score="pmi")


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a prompt and of each continuation to score behind it (none for a free-text query).

    `neutral` is the prompt without input where options are scored beyond what they have behind it; `per_token` takes means.
    `text` is the input that the prompt is of, `options` are the texts of the continuations where these are options.
    """

    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...] = ()
    neutral: tuple[int, ...] = ()
    per_token: bool = False
    text: str = ""
    options: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and all continuations."""
        return len(self.prompt) + sum(map(len, self.continuations))


def options_differ(prompts: Sequence[EncodedPrompt]) -> bool:
    """Whether the continuations are not the same, in any order, for all prompts."""
    return any(set(prompt.continuations) != set(prompts[0].continuations) for prompt in prompts)


class PromptEncoder:
    """Encodes queries and examples with one tokenizer and template. Stateless after construction, so threads may share it.

    `max_tokens` is the context: a prompt with all its continuations, which are packed behind it, must fit, or
    `PromptTooLongError` is raised. A `pmi` template without any text raises `AbmllError`.
    """

    def __init__(self, tokenizer: Any, template: PromptTemplate, max_tokens: int) -> None:
        self.tokenizer, self.template, self.max_tokens = tokenizer, template, max_tokens
        self.end_of_text: int = tokenizer.eos_token_id
        self._neutral = self._ids(template.before_input + template.after_input)
        if template.score == "pmi" and not self._neutral:
            raise AbmllError(
                "the score `pmi` compares with the prompt without input, which this template leaves empty"
            )

    def encode(self, query: Query, *, truncate: bool = False, max_new_tokens: int = 0) -> EncodedPrompt:
        """A query's prompt and options. `truncate` cuts the input's end; free text leaves room for `max_new_tokens`.

        Raises `OptionsError` for options that cannot be scored and `PromptTooLongError` for what does not fit.
        """
        if query.options:
            check_options(query.options)
        template, room = self.template, 0 if query.options else max_new_tokens
        encoded = self._fit(template.shown(query), self._continuations(query.options), truncate, room)
        encoded = replace(encoded, options=query.options)
        if not query.options or template.score == "total":
            return encoded
        neutral = self._neutral if template.score == "pmi" else ()
        return replace(encoded, neutral=neutral, per_token=True)

    def encode_example(self, example: Example, *, truncate: bool = False) -> EncodedPrompt:
        """As `encode`; a free-text example has its output, closed by the end-of-text token, as the one continuation."""
        if example.options:
            return self.encode(example.query, truncate=truncate)
        (output,) = self._continuations((example.output,))
        return self._fit(example.input, ((*output, self.end_of_text),), truncate, 0)

    def decode(self, ids: tuple[int, ...]) -> str:
        """The text of generated ids, without special tokens and the space that joins it to the prompt."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _continuations(self, texts: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        if not texts:
            return ()
        joined = [self.template.before_output + text.strip() for text in texts]
        return tuple(map(tuple, self.tokenizer(joined, add_special_tokens=False)["input_ids"]))

    def _fit(
        self, text: str, continuations: tuple[tuple[int, ...], ...], truncate: bool, room_for_answer: int
    ) -> EncodedPrompt:
        template = self.template
        prompt = self._ids(template.before_input + text + template.after_input)
        room = self.max_tokens - room_for_answer - sum(map(len, continuations))
        if len(prompt) > room:
            if not truncate:
                raise PromptTooLongError(len(prompt) + self.max_tokens - room, self.max_tokens)
            tail = tuple(self.tokenizer(template.after_input, add_special_tokens=False)["input_ids"])
            if room <= len(tail):
                raise PromptTooLongError(len(tail) + 1 + self.max_tokens - room, self.max_tokens)
            prompt = self._ids(template.before_input + text)[: room - len(tail)] + tail
        return EncodedPrompt(prompt, continuations, text=text)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text)["input_ids"])


@dataclass(frozen=True)
class LabelledPrompt:
    """A support example in tokens; `label` is the index of its output among the continuations."""

    prompt: EncodedPrompt
    label: int
