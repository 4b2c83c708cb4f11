"""From the rows of a source to the examples of a task, by the rules of the collection.

White space is folded. Inputs of more than `MAX_INPUT_CHARACTERS` are left out, and so are repeats,
inputs that have different answers, and training inputs that are test inputs too. Inputs are the
same where they differ in case, punctuation or spacing only.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from string import Formatter, ascii_uppercase
from typing import Any, assert_never

from abmll.errors import AbmllError
from abmll.seeds import derive_seed
from abmll.text.tasks import Example
from lab.task_sources.manifest import Better, Choice, FreeText, Labels, TaskSource

MAX_INPUT_CHARACTERS = 1000
MAX_TRAIN, MAX_TEST = 1000, 500
FIRST, SECOND = "sentence 1", "sentence 2"
_NO_TOKEN = re.compile(r"[\W_]+")


def task_examples(
    name: str, source: TaskSource, train: Iterable[Mapping[str, Any]], test: Iterable[Mapping[str, Any]]
) -> tuple[list[Example], list[Example]]:
    """Return the training and the test examples of a task, at most `MAX_TRAIN` and `MAX_TEST`.

    Both are in an order drawn by the name of the task. Where the source has no test files, a third
    of the rows of `train`, at most `MAX_TEST`, are test examples. Raises `AbmllError` for a row
    that is not as the source says, and where no example is left.
    """
    shuffled = random.Random(derive_seed(name, "order"))  # noqa: S311
    trained, tested = (
        _without_repeats(_examples(name, source, rows, side))
        for rows, side in ((train, "train"), (test, "test"))
    )
    shuffled.shuffle(trained)
    shuffled.shuffle(tested)
    if not source.test:
        count = min(MAX_TEST, len(trained) // 3)
        trained, tested = trained[count:], trained[:count]
    tested = tested[:MAX_TEST]
    seen = {_folded(example.input) for example in tested}
    trained = [example for example in trained if _folded(example.input) not in seen][:MAX_TRAIN]
    if not trained or not tested:
        raise AbmllError(f"task {name}: no {'test' if trained else 'training'} example is left of its rows")
    options = _fixed_options(name, source)
    if options:
        trained, tested = ([replace(e, options=options) for e in examples] for examples in (trained, tested))
    return trained, tested


def _fixed_options(name: str, source: TaskSource) -> tuple[str, ...]:
    """Return the closed list of labels of a task, in the order drawn by its name."""
    match source.output:
        case Labels(names=names):
            labels = list(dict.fromkeys(names.values() if isinstance(names, dict) else names))
        case Better():
            labels = [FIRST, SECOND]
        case _:
            return ()
    random.Random(derive_seed(name, "options")).shuffle(labels)  # noqa: S311
    return tuple(labels)


def _examples(
    name: str, source: TaskSource, rows: Iterable[Mapping[str, Any]], side: str
) -> Iterator[Example]:
    coin = random.Random(derive_seed(name, side, "pairs"))  # noqa: S311
    for number, row in enumerate(rows, start=1):
        try:
            if all(str(row[column]) in values for column, values in source.only.items()):
                found = _example(source, row, coin)
                if found is not None and len(found.input) <= MAX_INPUT_CHARACTERS:
                    yield found
        except KeyError as error:
            columns = ", ".join(map(str, row))
            raise AbmllError(
                f"task {name}, {side} row {number}: no column {error.args[0]!r}; its columns are {columns}"
            ) from error
        except ValueError as error:
            raise AbmllError(f"task {name}, {side} row {number}: {error}") from error


def _example(source: TaskSource, row: Mapping[str, Any], coin: random.Random) -> Example | None:
    """Return the example of a row, None for one that is left out.

    Raises `KeyError` and `ValueError` for a row that is not as the source says.
    """
    output = source.output
    match output:
        case Labels():
            label = _label(row[output.label], output.names)
            return None if label is None else Example(_input(source, row), label)
        case FreeText():
            answer = _only_text(row[output.text])
            return Example(_input(source, row), answer) if answer else None
        case Choice():
            return _choice(source, output, row)
        case Better():
            better, worse = _text(row[output.better]), _text(row[output.worse])
            first = coin.random() < 0.5
            pair = {"first": better, "second": worse} if first else {"first": worse, "second": better}
            return Example(_input(source, {**row, **pair}), FIRST if first else SECOND)
        case _:
            assert_never(output)


def _label(value: Any, names: Sequence[str] | Mapping[str, str]) -> str | None:
    """Return our label of a value, None where the row has none, which is written -1."""
    if value is None or value == -1:
        return None
    if isinstance(names, Mapping):
        if str(value) not in names:
            raise ValueError(f"label {value!r} is none of {', '.join(names)}")
        return names[str(value)]
    return names[_number(value, len(names), "label")]


def _choice(source: TaskSource, choice: Choice, row: Mapping[str, Any]) -> Example | None:
    listed = row[choice.options] if isinstance(choice.options, str) else [row[o] for o in choice.options]
    options = tuple(_text(option) for option in listed)
    if row[choice.answer] in (None, -1, "") or len(set(options)) < len(options) or not all(options):
        return None
    answer = options[_number(row[choice.answer], len(options), "answer")]
    shown = " ".join(f"({letter}) {o}" for letter, o in zip(ascii_uppercase, options, strict=False))
    return Example(f"{_input(source, row)} \n {shown}", answer, options)


def _number(value: Any, count: int, what: str) -> int:
    number = int(value)
    if not 0 <= number < count:
        raise ValueError(f"{what} {value!r} is no number from 0 to {count - 1}")
    return number


def _input(source: TaskSource, row: Mapping[str, Any]) -> str:
    columns = [column for _, column, _, _ in Formatter().parse(source.input) if column]
    return source.input.format(**{column: _text(row[column]) for column in columns}).strip()


def _only_text(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        value = value[0] if len(value) == 1 else None
    return None if value is None else _text(value)


def _text(value: Any) -> str:
    return " ".join(str(value).split())


def _without_repeats(examples: Iterable[Example]) -> list[Example]:
    """Return the first example of each input, and none of inputs that have different answers."""
    found: dict[str, Example | None] = {}
    for example in examples:
        key = _folded(example.input)
        known = found.setdefault(key, example)
        if known is not None and known.output != example.output:
            found[key] = None
    return [example for example in found.values() if example is not None]


def _folded(text: str) -> str:
    return _NO_TOKEN.sub("", text).casefold()
