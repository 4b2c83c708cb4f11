"""Tasks as data: labelled examples, queries, and readers for JSON Lines and CSV.

The JSON Lines format is that of CrossFit and MetaICL: one object a line with `task`, `input`, `output`, `options`.
"""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from abmll.errors import AbmllError, OptionsError, SupportError


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


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a `.jsonl`, `.csv` or `.tsv` file as dictionaries.

    In CSV and TSV, `options` is one cell with the options separated by `|`.
    Raises `AbmllError` naming the file and line on anything that is not such a row.
    """
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise AbmllError(f"{path.name} line {number} is not JSON: {error.msg}") from error
                if not isinstance(row, dict):
                    raise AbmllError(f"{path.name} line {number} is not a JSON object")
                yield row
        elif path.suffix in {".csv", ".tsv"}:
            for record in csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","):
                cell = record.get("options") or ""
                yield {**record, "options": [option.strip() for option in cell.split("|") if option.strip()]}
        else:
            raise AbmllError(f"{path.name}: expected .jsonl, .csv or .tsv")


def read_examples(path: Path) -> tuple[Example, ...]:
    """Labelled examples of a file (see `read_rows`). Raises `AbmllError` where a row lacks `input` or `output`."""
    examples = []
    for number, row in enumerate(read_rows(path), start=1):
        if not isinstance(row.get("input"), str) or not isinstance(row.get("output"), str):
            raise AbmllError(f"{path.name} row {number} needs the texts `input` and `output`")
        examples.append(Example(row["input"], row["output"], tuple(row.get("options") or ())))
    return tuple(examples)


def read_task(folder: Path) -> Task:
    """The task in `folder`, from its `train.jsonl` and `test.jsonl`."""
    return Task(folder.name, read_examples(folder / "train.jsonl"), read_examples(folder / "test.jsonl"))


def draw_uniformly(pool: Sequence[Example], size: int, seed: int) -> tuple[Example, ...]:
    """`size` examples of `pool` without replacement in a seeded random order, whatever their labels (as MetaICL draws k).

    A draw of one class alone, which no adaptation accepts, is drawn again, unless there is no other.
    """
    rng = random.Random(seed)  # noqa: S311 - a reproducible draw, not a secret
    size = min(size, len(pool))
    hopeless = size < 2 or one_class_only(pool)
    while True:
        drawn = tuple(rng.sample(list(pool), size))
        if hopeless or not one_class_only(drawn):
            return drawn


def draw_support(pool: Sequence[Example], size: int, seed: int) -> tuple[Example, ...]:
    """`size` examples of `pool` without replacement, classes as equal as the pool allows, in a seeded random order.

    Tasks whose options differ from row to row (multiple choice) and free text are drawn uniformly.
    """
    rng = random.Random(seed)  # noqa: S311 - a reproducible draw, not a secret
    shuffled = rng.sample(list(pool), len(pool))
    if len({example.options for example in pool}) > 1 or not pool[0].options:
        return tuple(shuffled[:size])
    queues: dict[str, list[Example]] = {option: [] for option in pool[0].options}
    for example in shuffled:
        queues[example.output].append(example)
    order = [queue for queue in queues.values() if queue]
    rng.shuffle(order)
    drawn: list[Example] = []
    while len(drawn) < min(size, len(pool)):
        for queue in order:
            if queue and len(drawn) < size:
                drawn.append(queue.pop())
    rng.shuffle(drawn)
    return tuple(drawn)
