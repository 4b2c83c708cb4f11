"""Tasks as data: labelled examples, queries, and readers for JSON Lines and CSV.

The JSON Lines format is that of CrossFit and MetaICL: one object a line with `task`, `input`, `output`, `options`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from abmll.errors import OptionsError, SupportError


@dataclass(frozen=True)
class Query:
    """An input to answer. `options` empty means free text."""

    input: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Example:
    """A labelled example. `options` empty means free text; otherwise `output` is one of them."""

    input: str
    output: str
    options: tuple[str, ...] = ()

    @property
    def query(self) -> Query:
        """The example without its label."""
        return Query(self.input, self.options)


@dataclass(frozen=True)
class Task:
    """A named task with a pool to draw support from and, disjoint from it, items to test on."""

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]


def listed(options: Sequence[str]) -> str:
    """Options as multiple-choice inputs show them: `(A) x (B) y`."""
    return " ".join(f"({letter}) {option}" for letter, option in zip(ascii_uppercase, options, strict=False))


def without_listed_options(query: Query) -> str:
    """The query's input without the list of its options, and the line break before it, where it has one."""
    before, found, after = (
        query.input.partition(listed(query.options)) if query.options else (query.input, "", "")
    )
    return before.rstrip() + after if found and before.strip() else query.input


def check_options(options: Sequence[str]) -> None:
    """Raise `OptionsError` unless `options` holds at least two different, non-blank texts."""
    if len(options) < 2:
        raise OptionsError("at least two options are needed to choose from")
    if any(not option.strip() for option in options):
        raise OptionsError("an option is empty")
    repeated = [option for option, n in Counter(option.strip() for option in options).items() if n > 1]
    if repeated:
        raise OptionsError(f"options are repeated: {repeated[0]!r}")


def check_support(support: Sequence[Example]) -> None:
    """Raise `SupportError` or `OptionsError` unless `support` is one that a posterior can be adapted to."""
    if not support:
        raise SupportError("the support set is empty")
    if len({bool(example.options) for example in support}) > 1:
        raise SupportError("some support examples have options and some have none")
    for example in support:
        if not example.output.strip():
            raise SupportError("a support example has an empty output")
        if example.options:
            check_options(example.options)
            if example.output not in example.options:
                raise OptionsError(f"the output {example.output!r} is not among the options")
    if support[0].options and one_class_only(support):
        raise SupportError(
            f"all support examples are labelled {support[0].output!r}: at least two classes are needed"
        )


def one_class_only(support: Sequence[Example]) -> bool:
    """Whether several examples share their options and all have one label: nothing that tells classes apart."""
    same_options = len({frozenset(example.options) for example in support}) == 1
    return same_options and len(support) > 1 and len({example.output for example in support}) == 1


def contradictions(support: Sequence[Example]) -> list[str]:
    """Inputs that appear with two different outputs, in order of first appearance."""
    outputs: dict[str, set[str]] = {}
    for example in support:
        outputs.setdefault(example.input, set()).add(example.output)
    return [text for text, labels in outputs.items() if len(labels) > 1]


def shared_options(support: Sequence[Example]) -> tuple[str, ...]:
    """The options that all examples have, in the order of the first; empty where they differ or there are none."""
    alike = len({frozenset(example.options) for example in support}) == 1
    return support[0].options if alike else ()


def count_labels(support: Sequence[Example]) -> dict[str, int]:
    """Examples by label in the order of the shared options, labels never shown included; empty without shared options."""
    counts = Counter(example.output for example in support)
    return {option: counts[option] for option in shared_options(support)}
