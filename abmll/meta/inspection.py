"""Inspection of tasks before meta-training: their sizes in tokens, and problems of their data."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from abmll.decoder.rows import packed_length
from abmll.errors import PromptTooLongError
from abmll.meta.settings import MetaSettings
from abmll.text.prompting import PromptEncoder
from abmll.text.tasks import Example, Task


@dataclass(frozen=True)
class TaskReport:
    """Report on one task.

    `examples` is the number of training examples, and `fitting` the number of those that fit
    `max_row_tokens`. Tokens of an example are counted with all its options. `median_tokens` and
    `longest_tokens` are over the examples that fit the context, and `mean_fitting_tokens` over
    those that training uses (0 if there are none).
    """

    name: str
    examples: int
    fitting: int
    median_tokens: int
    longest_tokens: int
    mean_fitting_tokens: float
    problems: tuple[str, ...]


def inspect_task(encoder: PromptEncoder, task: Task, settings: MetaSettings) -> TaskReport:
    """Encode every training example of `task`, and look for problems that harm training."""
    lengths = [tokens for example in task.train if (tokens := _tokens(encoder, example)) is not None]
    fitting = [tokens for tokens in lengths if tokens <= settings.max_row_tokens]
    wanted = settings.inner.steps * settings.inner.batch_size + settings.inner.batch_size * settings.query
    problems = []
    if not fitting:
        problems.append(f"no example fits {settings.max_row_tokens} tokens: the run would stop here")
    elif len(fitting) < wanted:
        problems.append(f"{len(fitting)} examples for the {wanted} of a visit: they are repeated")
    if fitting and len(fitting) < len(task.train) / 2:
        problems.append("most examples are too long")
    return TaskReport(
        task.name,
        len(task.train),
        len(fitting),
        round(statistics.median(lengths)) if lengths else 0,
        max(lengths, default=0),
        statistics.fmean(fitting) if fitting else 0.0,
        (*problems, *_data_problems(task)),
    )


def _tokens(encoder: PromptEncoder, example: Example) -> int | None:
    try:
        return packed_length(encoder.encode_example(example))
    except PromptTooLongError:
        return None


def _data_problems(task: Task) -> list[str]:
    problems = []
    labels = Counter(example.output for example in task.train)
    if any(example.options for example in task.train) and len(labels) == 1:
        problems.append(f"every example is labelled {next(iter(labels))!r}")
    outputs: dict[str, set[str]] = {}
    for example in task.train:
        outputs.setdefault(example.input, set()).add(example.output)
    if conflicting := sum(len(found) > 1 for found in outputs.values()):
        problems.append(f"{conflicting} inputs have more than one label")
    if leaked := len({example.input for example in task.test} & set(outputs)):
        problems.append(f"{leaked} test inputs are among the training inputs")
    return problems


def shared_inputs(tasks: Sequence[Task]) -> list[tuple[str, str, int]]:
    """Return pairs of tasks that have training inputs in common, and the number of such inputs.

    No task of a pair may be tested where the other is trained on.
    """
    inputs = {task.name: {example.input for example in task.train} for task in tasks}
    pairs = ((one, other, len(inputs[one] & inputs[other])) for one, other in combinations(inputs, 2))
    return [pair for pair in pairs if pair[2]]


def visit_tokens(reports: Sequence[TaskReport], settings: MetaSettings) -> float:
    """Return the mean number of tokens in a visit.

    The trunk computes each of them once, and the gradient steps once more.
    """
    used = [report.mean_fitting_tokens for report in reports if report.fitting]
    examples = settings.tasks_per_visit * settings.inner.steps * settings.inner.batch_size
    return statistics.fmean(used) * examples if used else 0.0
