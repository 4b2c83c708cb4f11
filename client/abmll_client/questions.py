"""Typed questions, and cases that answer them: what callers give, and what is sent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from abmll_client.arguments import check_characters, kind_of, listed


@dataclass(frozen=True)
class Predicate:
    """Is it so? `yes` and `no` say what counts as each, and may be empty."""

    name: str
    instructions: str
    yes: str = ""
    no: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the question as requests have it."""
        asked: dict[str, Any] = {
            "type": "predicate", "name": self.name, "instructions": self.instructions,
        }  # fmt: skip
        return asked | ({"criteria": {"yes": self.yes, "no": self.no}} if self.yes or self.no else {})


@dataclass(frozen=True)
class Choice:
    """Which of some values? `choices` are texts or booleans, or a mapping to their descriptions."""

    name: str
    instructions: str
    choices: Sequence[str | bool] | Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the question as requests have it."""
        rows = _described(self.choices, "value")
        return {"type": "choice", "name": self.name, "instructions": self.instructions, "choices": rows}


@dataclass(frozen=True)
class Score:
    """How much? `levels` are labels from the lowest on, or a mapping to their descriptions."""

    name: str
    instructions: str
    levels: Sequence[str] | Mapping[str, str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the question as requests have it."""
        rows = _described(self.levels, "label")
        return {"type": "score", "name": self.name, "instructions": self.instructions, "levels": rows}


QuestionLike: TypeAlias = Predicate | Choice | Score | Mapping[str, Any] | str
"""A question, one as requests have it, or the name of one of the adapter's own."""

CasesLike: TypeAlias = Iterable[tuple[str, Mapping[str, Any]] | Mapping[str, Any]]
"""Inputs with answers by the names of questions: pairs, or rows with `input` and `answers`."""


def question_rows(questions: Iterable[QuestionLike]) -> list[Mapping[str, Any] | str]:
    """Turn questions into JSON. Raises `TypeError` for what is no list of questions."""
    rows: list[Mapping[str, Any] | str] = []
    for i, question in enumerate(listed(questions, "questions", "questions")):
        if isinstance(question, Predicate | Choice | Score):
            rows.append(question.to_json())
        elif isinstance(question, Mapping | str):
            rows.append(question)
        else:
            raise TypeError(
                f"questions[{i}] is a Predicate, a Choice, a Score, a row or a name, not {kind_of(question)}"
            )
    check_characters(rows, "questions")
    return rows


def case_rows(cases: CasesLike) -> list[Mapping[str, Any]]:
    """Turn cases into rows. Raises `TypeError` for what is no list of cases."""
    rows = []
    for i, case in enumerate(listed(cases, "cases", "cases")):
        if isinstance(case, Mapping):
            rows.append(case)
            continue
        pair = list(case) if isinstance(case, tuple | list) else []
        if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], Mapping):
            raise TypeError(f"cases[{i}] is a pair of a text and its answers by question, or a row")
        rows.append({"input": pair[0], "answers": dict(pair[1])})
    check_characters(rows, "cases")
    return rows


def values_of(question: Mapping[str, Any]) -> list[str | bool]:
    """Return the possible answers to a question, which is as requests have it.

    Raises `KeyError` and `TypeError` for what is no question.
    """
    if question["type"] == "predicate":
        return [True, False]
    named = ("choices", "value") if question["type"] == "choice" else ("levels", "label")
    return [option[named[1]] for option in question[named[0]]]


def answer_of(value: Any) -> Any:
    """Return an answer as JSON has it.

    None, NaN and pandas' NA are null, numbers of numpy become Python's, and 2.0 becomes 2.
    """
    if value is None or type(value).__name__ == "NAType":
        return None
    found = value.item() if hasattr(value, "item") else value
    if not isinstance(found, float):
        return found
    return None if math.isnan(found) else int(found) if found.is_integer() else found


def _described(options: Sequence[str | bool] | Mapping[str, str], name: str) -> list[dict[str, Any]]:
    if isinstance(options, str):
        raise TypeError(f"the {name}s are a list of texts, not one text")
    if isinstance(options, Mapping):
        return [{name: option, "description": text} for option, text in options.items()]
    return [{name: option} for option in options]
