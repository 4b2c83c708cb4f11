"""What callers give: labelled examples, inputs, and the optional fields of requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

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


class CalibrateFields(TypedDict, total=False):
    """The fields of `POST /v1/adapters/{id}/calibrate` besides the examples."""

    options: Sequence[str] | None
    samples: int | Literal["auto"]
    seed: int
    truncate: bool
    max_new_tokens: int


def labelled_rows(examples: SupportLike) -> list[Mapping[str, Any]]:
    """Turn labelled examples into rows. Raises `ValueError` for a tuple that is not a pair."""
    return [
        row if isinstance(row, Mapping) else dict(zip(("input", "output"), row, strict=True))
        for row in examples
    ]


def input_rows(inputs: InputsLike) -> list[str | Mapping[str, Any]]:
    """List the inputs. Raises `TypeError` for a single text, which would go letter by letter."""
    if isinstance(inputs, str):
        raise TypeError("inputs are a list of texts, not one text")
    return list(inputs)
