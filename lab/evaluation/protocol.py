"""Who is tested on what: shots and support seeds, a cell's episode, and no task trained on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from abmll.errors import AbmllError
from abmll.meta.instructions import TaskQuestion
from abmll.text.draws import draw_support, draw_uniformly
from abmll.text.tasks import Example, Query, Task, without_listed_options
from lab.evaluation.cells import Cell, Episode

# CrossFit's five support seeds.
SEEDS = (13, 21, 42, 87, 100)
# Data sets made of the same texts: none of a set is an unseen task after training on another of it.
# That holds even where the files at hand have no input in common.
SAME_TEXTS = (
    frozenset({"glue-sst2", "sst5", "rotten_tomatoes"}),
    frozenset({"glue-rte", "superglue-rte"}),
    frozenset({"glue-wnli", "superglue-wsc"}),
    frozenset({"trec", "trec-finegrained"}),
    frozenset({"yelp_polarity", "yelp_review_full"}),
    frozenset({"commonsense_qa", "cos_e"}),
    frozenset({"climate_fever", "climate_fever-evidence"}),
    frozenset({"race-middle", "race-high"}),
)


class LeakError(AbmllError):
    """A task to test on was meta-trained on, or one that shares its sentences was."""

    def __init__(self, posterior: str, pairs: Sequence[tuple[str, str]]) -> None:
        listed = "; ".join(
            f"{test} is itself among them" if test == train else f"{test} shares its sentences with {train}"
            for test, train in pairs
        )
        super().__init__(f"{posterior} was trained on tasks that it cannot be tested on: {listed}")
        self.posterior, self.pairs = posterior, tuple(pairs)

    def __reduce__(self) -> tuple[type, tuple[str, tuple[tuple[str, str], ...]]]:
        return type(self), (self.posterior, self.pairs)


def related(one: str, other: str, about: Mapping[str, Mapping[str, Any]]) -> bool:
    """Say whether two tasks are the same or share sentences.

    They share sentences by `tasks.json`, in the entry of either, or by their origin (`SAME_TEXTS`).
    """
    recorded = (
        other in about.get(one, {}).get("shares_inputs_with", {})
        or one in about.get(other, {}).get("shares_inputs_with", {})
    )  # fmt: skip
    return one == other or recorded or any({one, other} <= group for group in SAME_TEXTS)


def check_unseen(
    posterior: str,
    trained_on: Collection[str],
    tested_on: Iterable[str],
    about: Mapping[str, Mapping[str, Any]],
) -> None:
    """Raise `LeakError` where a task to test on is related to one that was trained on.

    The error names every such pair.
    """
    pairs = [
        (test, train) for test in tested_on for train in sorted(trained_on) if related(test, train, about)
    ]
    if pairs:
        raise LeakError(posterior, pairs)


def draw_shots(shots: str, pool: Sequence[Example], seed: int) -> tuple[Example, ...]:
    """Draw the support that `shots` means from `pool` with `seed`.

    `16` are that many in all, drawn uniformly, as MetaICL does (Min et al. 2022: labels need not be
    balanced). `16 balanced` are as many, with classes as equal as can be. `16 per class` are as
    many of each class (CrossFit; 32 in all without fixed classes). Raises `AbmllError` for anything
    else.
    """
    number, _, rest = shots.partition(" ")
    if not number.isdecimal() or int(number) < 1 or rest not in {"", "balanced", "per class"}:
        raise AbmllError(f"shots are a number, alone or with `balanced` or `per class`, not {shots!r}")
    size = int(number)
    if not rest:
        return draw_uniformly(pool, size, seed)
    if rest == "per class":
        closed = len({example.options for example in pool}) == 1
        size *= len({example.output for example in pool}) if closed else 2
    return draw_support(pool, size, seed)


def plan(
    methods: Sequence[str], tasks: Sequence[str], shots: Sequence[str], seeds: Sequence[int]
) -> list[Cell]:
    """Return every cell, method by method.

    A process that works down the list changes its model as seldom as can be.
    """
    return [
        Cell(method, task, k, seed) for method in methods for k in shots for seed in seeds for task in tasks
    ]


def neighbours(tasks: Sequence[Task], about: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return, for each task, the task whose items count as out of distribution.

    That is the next one in the list that shares no sentences with it. A task without one is left
    out.
    """
    names = [task.name for task in tasks]
    found = {}
    for i, name in enumerate(names):
        others = [other for other in names[i + 1 :] + names[:i] if not related(name, other, about)]
        if others:
            found[name] = others[0]
    return found


def episode(
    task: Task,
    shots: str,
    seed: int,
    *,
    items: int,
    foreign: Task | None = None,
    foreign_items: int = 0,
    asked: TaskQuestion | None = None,
) -> Episode:
    """Draw the support (see `draw_shots`) and take the first `items` test items.

    All methods see the same. Inputs of `foreign` are put under this task's options; a task whose
    options differ from item to item takes none. With `asked`, all show this question. Raises
    `AbmllError` for a task without options.
    """
    support = draw_shots(shots, task.train, seed)
    tested = task.test[:items]
    if not tested or not all(example.options for example in (*support, *tested)):
        raise AbmllError(f"{task.name} has no options to choose from, or no test items")
    strangers: tuple[Query, ...] = ()
    if foreign is not None and classes_of(task):
        strangers = tuple(Query(item.input, tested[0].options) for item in foreign.test[:foreign_items])
    if asked is not None:
        support, tested = (tuple(filter(None, map(asked.ask, rows))) for rows in (support, tested))
        strangers = tuple(
            replace(tested[0].query, input=text)
            for text in map(without_listed_options, [item.query for item in foreign.test[:foreign_items]])
        ) if strangers and foreign else ()  # fmt: skip
    return Episode(
        support,
        tuple(item.query for item in tested),
        tuple(item.options.index(item.output) for item in tested),
        strangers,
    )


def classes_of(task: Task) -> tuple[str, ...]:
    """Return the task's label words, where every item has the same; else none (multiple choice)."""
    found = {example.options for example in (*task.train, *task.test)}
    return found.pop() if len(found) == 1 else ()


def can_be_tested(task: Task) -> bool:
    """Say whether every example has options: free text has no label to score here."""
    return bool(task.test) and all(example.options for example in (*task.train, *task.test))
