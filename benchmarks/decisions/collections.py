"""Labelled collections of decisions: questions, and cases with an answer or none to each."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from abmll.text.files import read_task
from abmll.text.questions import NO, YES, Case, Question, questions_from_json

OWN = Path(__file__).parent / "collections"
# Tasks on the same comments, none of which the shipped posterior was trained on.
COMMENTS = ("ethos-religion", "ethos-race", "ethos-national_origin")


@dataclass(frozen=True)
class Decisions:
    """A collection: `cases` have answers to all of `questions`; None is "cannot tell"."""

    name: str
    questions: tuple[Question, ...]
    cases: tuple[Case, ...]

    def split(self, labelled: int, tested: int, seed: int) -> tuple[list[Case], list[Case]]:
        """Return cases to learn from, and others to test on.

        The tested ones do not depend on the number of those to learn from.
        """
        order = list(self.cases)
        random.Random(seed).shuffle(order)
        return order[tested : tested + labelled], order[:tested]


def read_own(name: str) -> Decisions:
    """Read a collection of our own making."""
    questions = questions_from_json(json.loads((OWN / name / "questions.json").read_text("utf-8")))
    lines = (OWN / name / "cases.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line]
    return Decisions(name, questions, tuple(Case(row["input"], row["answers"]) for row in rows))


def read_comments(data: Path, names: Sequence[str] = COMMENTS) -> Decisions:
    """Read the predicates of several tasks on one collection of comments, without "cannot tell"."""
    asked = {
        "ethos-religion": "Is the comment hostile to people because of their religion?",
        "ethos-race": "Is the comment hostile to people because of their race?",
        "ethos-national_origin": "Is the comment hostile to people because of where they come from?",
    }
    questions = tuple(Question(name, "predicate", asked[name], (YES, NO)) for name in names)
    answers: dict[str, dict[str, str | None]] = {}
    for name in names:
        task = read_task(data / name)
        for example in (*task.train, *task.test):
            answers.setdefault(example.input, {})[name] = YES if example.output == "true" else NO
    whole = [Case(text, found) for text, found in answers.items() if len(found) == len(names)]
    return Decisions("comments", questions, tuple(whole))
