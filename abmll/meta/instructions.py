"""What tasks ask, in words: instructions, descriptions of options, and questions that their labels
answer.

A visit of meta-training draws how it asks its examples. So theta sees one task under several
wordings, with and without descriptions, as a predicate, a choice or a score, and with questions
that an input does not answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from abmll.errors import AbmllError
from abmll.text.questions import NO, YES, Kind
from abmll.text.tasks import CANNOT_TELL, Example, without_listed_options


@dataclass(frozen=True)
class DerivedQuestion:
    """A question that the labels of a task answer.

    `options` are its own options, each with those of the task that it stands for; of a score, from
    the lowest level on. `descriptions` are of its own options.
    """

    kind: Kind
    instructions: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    descriptions: Mapping[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, str]:
        """Return its own option by the option of the task."""
        return {label: option for option, labels in self.options.items() for label in labels}


@dataclass(frozen=True)
class StatementQuestion:
    """A predicate for each input of a task of pairs: does the one text say what the other states?

    `pattern` finds the groups `text` and `statement` in an input. `instructions` have a place
    `{statement}`. Labels that are neither `yes` nor `no` are those of inputs that do not tell.
    """

    pattern: str
    instructions: tuple[str, ...]
    yes: tuple[str, ...]
    no: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskInstructions:
    """What a task asks: wordings of its instruction, what its options mean, and other questions.

    Of two tasks with different `subject`, neither's question can be answered from the other's
    inputs. A task without a subject takes no part in that.
    """

    instructions: tuple[str, ...]
    descriptions: Mapping[str, str] = field(default_factory=dict)
    derived: tuple[DerivedQuestion, ...] = ()
    statement: StatementQuestion | None = None
    subject: str = ""


@dataclass(frozen=True)
class Showing:
    """How often visits show what, as probabilities.

    `instructed`: that a visit shows instructions at all. `derived`: that a question is a derived
    one, where there are some. `statements`: that a task of pairs is asked statements. `described`:
    that options have descriptions, where there are at most `most_described` of them. `declinable`:
    that a visit's questions may be declined, and `strange` that an example is then asked what it
    does not answer. `questions` is the most questions of a visit to one task, all about each input.
    `mixed`: that a visit to a task with options has examples of `mixed_tasks` such tasks, each with
    its own question.
    """

    instructed: float = 0.0
    derived: float = 0.4
    statements: float = 0.5
    described: float = 0.5
    most_described: int = 12
    declinable: float = 0.5
    strange: float = 0.14
    questions: int = 3
    mixed: float = 0.0
    mixed_tasks: int = 8


@dataclass(frozen=True)
class TaskQuestion:
    """One question about the examples of a task, as it was drawn.

    `labels` has its own option by the option of the task, and is empty where options stay.
    """

    instruction: str
    options: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    descriptions: Mapping[str, str] = field(default_factory=dict)
    statement: StatementQuestion | None = None
    declinable: bool = False

    def ask(self, example: Example) -> Example | None:
        """Return the example with this question; None where the example does not answer it."""
        text, instruction, output = without_listed_options(example.query), self.instruction, example.output
        options = self.options or example.options
        if self.statement is not None:
            found = re.fullmatch(self.statement.pattern, example.input, re.DOTALL)
            if found is None:
                return None
            text, instruction = found["text"], instruction.replace("{statement}", found["statement"].strip())
        if self.labels:
            if output not in self.labels and not (self.statement and self.declinable):
                return None
            output = self.labels.get(output, CANNOT_TELL)
        return _example(text, output, options, instruction, self.descriptions, declinable=self.declinable)

    def ask_stranger(self, example: Example) -> Example:
        """Return an example of another task with this question, which it does not answer."""
        text = without_listed_options(example.query)
        return _example(text, CANNOT_TELL, self.options, self.instruction, self.descriptions, declinable=True)


def _example(
    text: str,
    output: str,
    options: tuple[str, ...],
    instruction: str,
    descriptions: Mapping[str, str],
    *,
    declinable: bool,
) -> Example:
    declinable = declinable and bool(options)
    shown = (*options, CANNOT_TELL) if declinable else options
    described = tuple(descriptions.get(option, "") for option in shown)
    return Example(text, output, shown, instruction, described if any(described) else (), declinable)


def own_question(task: TaskInstructions, wording: int = 0, *, described: bool = False) -> TaskQuestion:
    """Return the task's own question in one of its wordings. Raises `AbmllError` without it."""
    if wording >= len(task.instructions):
        raise AbmllError(f"there is no wording {wording} of {len(task.instructions)}")
    return TaskQuestion(task.instructions[wording], descriptions=task.descriptions if described else {})


def draw_question(
    task: TaskInstructions, options: Sequence[str], showing: Showing, rng: random.Random, *, declinable: bool
) -> TaskQuestion:
    """Draw a question of a task whose examples have `options`, or different ones where it is empty."""
    statement = task.statement
    if statement is not None and rng.random() < showing.statements:
        labels = {**dict.fromkeys(statement.yes, YES), **dict.fromkeys(statement.no, NO)}
        return TaskQuestion(rng.choice(statement.instructions), (YES, NO), labels, {}, statement, declinable)
    described = rng.random() < showing.described and len(options) <= showing.most_described
    if task.derived and rng.random() < showing.derived:
        chosen = rng.choice(task.derived)
        return TaskQuestion(
            rng.choice(chosen.instructions),
            tuple(chosen.options),
            chosen.labels,
            chosen.descriptions if described else {},
            declinable=declinable,
        )
    descriptions = task.descriptions if described else {}
    return TaskQuestion(
        rng.choice(task.instructions), tuple(options), {}, descriptions, declinable=declinable
    )


def draw_questions(
    name: str,
    tasks: Mapping[str, TaskInstructions],
    options: Mapping[str, Sequence[str]],
    showing: Showing,
    rng: random.Random,
    *,
    most: int,
) -> Callable[[Example], list[Example]]:
    """Draw at most `most` questions to the task `name`; return what asks an example each of them.

    `options` are those of each task, empty where they differ between examples.
    """
    declinable = rng.random() < showing.declinable
    count = rng.randint(1, most)
    own = [
        draw_question(tasks[name], options[name], showing, rng, declinable=declinable) for _ in range(count)
    ]
    others = [other for other in strangers(name, tasks) if options[other]] if declinable else []
    strange = [
        draw_question(tasks[other], options[other], showing, rng, declinable=True)
        for other in rng.sample(others, min(count, len(others)))
        if tasks[other].statement is None
    ]

    def ask(example: Example) -> list[Example]:
        found = [
            rng.choice(strange).ask_stranger(example)
            if strange and rng.random() < showing.strange
            else question.ask(example)
            for question in own
        ]
        return list(dict.fromkeys(asked for asked in found if asked is not None))

    return ask


def strangers(name: str, tasks: Mapping[str, TaskInstructions]) -> list[str]:
    """Return the tasks whose questions the inputs of the task `name` do not answer."""
    own = tasks[name].subject
    return [other for other, task in tasks.items() if own and task.subject and task.subject != own]
