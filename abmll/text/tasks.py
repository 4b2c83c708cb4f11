"""Tasks as data: labelled examples, queries, and checks of a support.

The fields have the names of the JSON Lines format of CrossFit and MetaICL: `input`, `output`,
`options`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Self, TypeAlias

from abmll.errors import OptionsError, SupportError

# The option of a declinable query that stands for no answer.
CANNOT_TELL = "cannot tell"
QuestionKey: TypeAlias = tuple[str, frozenset[str]]


@dataclass(frozen=True)
class Query:
    """Input to answer. Without `options` the answer is free text.

    `instruction` says what is asked about the input. `descriptions` say what each option means, in
    their order; there are none, or one for each option, which may be empty. The last option of a
    `declinable` query is `CANNOT_TELL`: the input does not tell the answer.
    """

    input: str
    options: tuple[str, ...] = ()
    instruction: str = ""
    descriptions: tuple[str, ...] = ()
    declinable: bool = False

    @property
    def answers(self) -> tuple[str, ...]:
        """Return the options that are answers: all but `CANNOT_TELL` of a declinable query."""
        return self.options[:-1] if self.declinable else self.options


@dataclass(frozen=True)
class Example:
    """Labelled example. `output` is one of the `options`; without options it is free text.

    The other fields are those of `Query`.
    """

    input: str
    output: str
    options: tuple[str, ...] = ()
    instruction: str = ""
    descriptions: tuple[str, ...] = ()
    declinable: bool = False

    @property
    def query(self) -> Query:
        """Return the example without its label."""
        return Query(self.input, self.options, self.instruction, self.descriptions, self.declinable)

    def to_json(self) -> dict[str, Any]:
        """Return plain values: what is asked only where there is an instruction."""
        values: dict[str, Any] = {"input": self.input, "output": self.output, "options": list(self.options)}
        if self.instruction:
            values |= {"instruction": self.instruction, "descriptions": list(self.descriptions)}
        return values | ({"declinable": True} if self.declinable else {})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned."""
        options, descriptions = tuple(values["options"]), tuple(values.get("descriptions", ()))
        asked = values.get("instruction", ""), descriptions, values.get("declinable", False)
        return cls(values["input"], values["output"], options, *asked)


@dataclass(frozen=True)
class Task:
    """Named task: examples `train` to draw a support from, and others, `test`, to test on."""

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]


def listed(options: Sequence[str]) -> str:
    """Return options as multiple-choice inputs show them: `(A) x (B) y`."""
    return " ".join(f"({letter}) {option}" for letter, option in zip(ascii_uppercase, options, strict=False))


def without_listed_options(query: Query) -> str:
    """Return the query's input without the list of its options.

    The white space before the list goes too. An input without such a list, or with nothing in front
    of it, stays as it is.
    """
    options = query.answers
    before, found, after = query.input.partition(listed(options)) if options else (query.input, "", "")
    return before.rstrip() + after if found and before.strip() else query.input


def check_options(options: Sequence[str]) -> None:
    """Raise `OptionsError` unless `options` holds at least two different, non-blank texts.

    Texts that look the same are not different: those that differ only by white space, by marks that
    are not seen, or by how an accent is coded (NFC).
    """
    if len(options) < 2:
        raise OptionsError("at least two options are needed to choose from")
    if any(not option.strip() for option in options):
        raise OptionsError("an option is empty")
    seen: dict[str, str] = {}
    for option in options:
        first = seen.get(_look(option))
        if first == option:
            raise OptionsError(f"options are repeated: {option!r}")
        if first is not None and first.split() == option.split():
            raise OptionsError(f"the options {first!r} and {option!r} differ only by white space")
        if first is not None:
            raise OptionsError(f"the options {first!a} and {option!a} look the same: write both alike")
        seen[_look(option)] = option


# Soft hyphen, zero-width space, marks of direction, word joiner, byte-order mark. The joiners of
# emoji and of Persian (200C, 200D) are not among them: without them, a text looks different.
_UNSEEN = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")


def _look(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", _UNSEEN.sub("", text)).split())


def question_key(asked: Query | Example) -> QuestionKey:
    """Return what is equal for two queries or examples of one question: instruction and options.

    Where it is not declinable, the instruction alone counts: the options of one question may then
    differ from input to input.
    """
    return asked.instruction, frozenset(asked.options) if asked.declinable else frozenset()


def examples_by_question(support: Sequence[Example]) -> dict[QuestionKey, list[int]]:
    """Return the positions of the examples of each question, in the order of its first one."""
    found: dict[QuestionKey, list[int]] = {}
    for i, example in enumerate(support):
        found.setdefault(question_key(example), []).append(i)
    return found


def tells(example: Example) -> bool:
    """Return whether the input of `example` tells its answer."""
    return not example.declinable or example.output != CANNOT_TELL


def check_example(example: Example) -> None:
    """Raise `SupportError` or `OptionsError` unless `example` has a label, one of its options."""
    if not example.output.strip():
        raise SupportError("a support example has an empty output")
    if example.options:
        check_options(example.options)
        if example.output not in example.options:
            raise OptionsError(f"the output {example.output!r} is not among the options")


def check_support(support: Sequence[Example]) -> None:
    """Raise `SupportError` or `OptionsError` unless a posterior can be adapted to `support`."""
    if not support:
        raise SupportError("the support set is empty")
    if len({bool(example.options) for example in support}) > 1:
        raise SupportError("some support examples have options and some have none")
    for example in support:
        check_example(example)
    if support[0].options and one_class_only(support):
        raise SupportError(
            f"all support examples are labelled {support[0].output!r}: at least two classes are needed"
        )


def one_class_only(support: Sequence[Example]) -> bool:
    """Return whether `support` is several examples of one question with the same label."""
    same_question = len({(example.instruction, frozenset(example.options)) for example in support}) == 1
    return same_question and len(support) > 1 and len({example.output for example in support}) == 1


def contradictions(support: Sequence[Example]) -> list[str]:
    """Return the inputs with different outputs to one question, in the order of their appearance.

    Examples with an instruction are of one question if their options are the same too.
    """
    outputs: dict[tuple[str, object], set[str]] = {}
    for example in support:
        asked = (example.instruction, frozenset(example.options)) if example.instruction else None
        outputs.setdefault((example.input, asked), set()).add(example.output)
    return list(dict.fromkeys(text for (text, _), labels in outputs.items() if len(labels) > 1))


def shared_options(support: Sequence[Example]) -> tuple[str, ...]:
    """Return the options that all examples have, in the order of the first example.

    The result is empty where options or instructions differ, or there are none.
    """
    alike = len({(example.instruction, frozenset(example.options)) for example in support}) == 1
    return support[0].options if alike else ()


def count_labels(support: Sequence[Example]) -> dict[str, int]:
    """Return the number of examples of each label, in the order of the shared options.

    A label without an example has 0. The result is empty where there are no shared options.
    """
    counts = Counter(example.output for example in support)
    return {option: counts[option] for option in shared_options(support)}


def unlabelled_options(examples: Sequence[Example]) -> tuple[str, ...]:
    """Return the shared options that no example is labelled with, in their order."""
    return tuple(option for option, count in count_labels(examples).items() if not count)


def spelt_otherwise(options: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Return those of `options` that are not among `known`, with the known one that each reads
    like.

    Two texts read alike where only case, space or the form of characters (NFKC) differs: `Billing`
    and `billing`.
    """
    alike = {_read_aloud(option): option for option in reversed(known)}
    unknown = [option for option in options if option.strip() not in {text.strip() for text in known}]
    return {option: alike[_read_aloud(option)] for option in unknown if _read_aloud(option) in alike}


def _read_aloud(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
