"""What callers give: labelled examples, inputs, and the optional fields of requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")

SupportLike: TypeAlias = Iterable[tuple[str, str] | Mapping[str, Any]]
"""Labelled examples: (text, label) pairs, or rows with `input`, `output` and perhaps `options`."""

InputsLike: TypeAlias = Iterable[str | Mapping[str, Any]]
"""Texts to answer, or rows with `input` and perhaps `options`."""


class AdaptFields(TypedDict, total=False):
    """The fields of `POST /v1/adapters` besides the support; `adapt` is sent as it is given."""

    model: str | None
    options: Sequence[str] | None
    adapt: Mapping[str, Any] | None
    seed: int
    truncate: bool


class PredictFields(AdaptFields, total=False):
    """The fields of `POST /v1/predict` besides the inputs; `gate` and `set` are sent as given."""

    adapter_id: str | None
    support: SupportLike | None
    samples: int | Literal["auto"]
    confidence: Literal["predictive", "calibrated"] | None
    gate: Mapping[str, Any] | None
    set: Mapping[str, Any] | None
    log: bool
    max_new_tokens: int
    answers_per_sample: int


class TeachFields(TypedDict, total=False):
    """The fields of `POST /v1/adapters` besides questions and cases."""

    model: str | None
    adapt: Mapping[str, Any] | None
    seed: int
    truncate: bool


class DecideFields(TeachFields, total=False):
    """The fields of `POST /v1/decide` besides inputs, questions and cases.

    `gates` are by the name of a question, each in place of `gate`.
    """

    adapter_id: str | None
    samples: int | Literal["auto"]
    confidence: Literal["predictive", "calibrated"] | None
    gate: Mapping[str, Any] | None
    gates: Mapping[str, Mapping[str, Any]] | None


class CalibrateFields(TypedDict, total=False):
    """The fields of `POST /v1/adapters/{id}/calibrate` besides the examples."""

    question: str | int | None
    options: Sequence[str] | None
    samples: int | Literal["auto"]
    seed: int
    truncate: bool
    max_new_tokens: int


def labelled_rows(examples: SupportLike, name: str = "examples") -> list[Mapping[str, Any]]:
    """Turn labelled examples into rows; errors call them `name`.

    Raises `TypeError` for what is no list of examples, and `ValueError` for a tuple that is no pair
    and for half a character.
    """
    rows = []
    for i, row in enumerate(listed(examples, name)):
        if isinstance(row, str | bytes) or not isinstance(row, Iterable):
            raise TypeError(f"{name}[{i}] is a (text, label) pair or a row, not {kind_of(row)}")
        if isinstance(row, Mapping):
            rows.append(row)
            continue
        pair = list(row)
        if len(pair) != 2:
            raise ValueError(f"{name}[{i}] is a pair of text and label, not {len(pair)} values")
        if not all(isinstance(value, str) for value in pair):
            kinds = " and ".join(map(kind_of, pair))
            raise TypeError(f"{name}[{i}] is a pair of two texts, not of {kinds}")
        rows.append({"input": pair[0], "output": pair[1]})
    check_characters(rows, name)
    return rows


def input_rows(inputs: InputsLike) -> list[str | Mapping[str, Any]]:
    """List the inputs.

    Raises `TypeError` for a single text, which would go letter by letter, and for whatever else is
    no list of texts and rows; `ValueError` for half a character.
    """
    rows = list(listed(inputs, "inputs"))
    for i, row in enumerate(rows):
        if not isinstance(row, str | Mapping):
            raise TypeError(f"inputs[{i}] is a text or a row, not {kind_of(row)}")
    check_characters(rows, "inputs")
    return rows


def text_rows(inputs: Iterable[str]) -> list[str]:
    """List the texts. Raises as `input_rows`, also for a row."""
    rows = []
    for i, row in enumerate(input_rows(inputs)):
        if not isinstance(row, str):
            raise TypeError(f"inputs[{i}] is a text, not {kind_of(row)}")
        rows.append(row)
    return rows


def check_characters(value: Any, name: str) -> None:
    """Raise `ValueError` for half a surrogate pair in a text of the JSON `value`, and say where.

    Such a half is no character, so no request can carry it.
    """
    if isinstance(value, str):
        half = None if value.isascii() else _LONE_SURROGATE.search(value)
        if half:
            raise ValueError(
                f"{name} holds \\u{ord(half[0]):04x}, half of a character: write both halves, or none"
            )
    elif isinstance(value, Mapping):
        for key, part in value.items():
            check_characters(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            check_characters(part, f"{name}[{i}]")


def listed(rows: Iterable[Any], name: str, what: str = "texts") -> Iterable[Any]:
    """Return `rows`. Raises `TypeError` for what would be taken apart into letters, keys or
    columns.
    """
    if isinstance(rows, str | bytes):
        raise TypeError(f"{name} are a list of {what}, not one text")
    if isinstance(rows, Mapping):
        raise TypeError(f"{name} are a list of rows, not one row")
    if hasattr(rows, "columns"):
        raise TypeError(f"{name} are a list, not a frame: take its column, or the client's `_frame` methods")
    return rows


def kind_of(value: Any) -> str:
    """Return what a message calls a value."""
    return "a text" if isinstance(value, str) else type(value).__name__
