"""A study: a configuration with its tasks and its posteriors, checked. Loads no model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter

from abmll.errors import AbmllError
from abmll.meta.collection import Collection
from abmll.meta.instructions import TaskQuestion, own_question
from abmll.text.tasks import Task
from lab.evaluation.cells import Cell, Episode
from lab.evaluation.configuration import Entry, EvaluationConfig
from lab.evaluation.protocol import can_be_tested, check_unseen, classes_of, episode, neighbours, plan
from lab.instructions import read_instructions
from model_store.posteriors import LoadedPosterior, load_posterior


class Study:
    """The tasks and the posteriors of a configuration, and the cells that it asks for.

    `splits` has the tasks to test on by split, `validation` those that temperatures are fitted on.
    `foreign` names, by task, the task whose items count as out of distribution. `left_out` are
    tasks with free text, which has no options.
    """

    def __init__(self, config: EvaluationConfig) -> None:
        """Read the data and the posteriors.

        Raises `AbmllError` for what is not there, and `LeakError` where a posterior was trained on
        a task that it is tested on.
        """
        self.config = config
        self.collection = Collection.open(config.data.folder)
        wanted = _splits(config, self.collection)
        read = self.collection.read(_unique([*wanted.values(), config.data.validation]))
        self.tasks: dict[str, Task] = {task.name: task for task in read if can_be_tested(task)}
        self.left_out = [task.name for task in read if task.name not in self.tasks]
        self.splits = {split: [n for n in names if n in self.tasks] for split, names in wanted.items()}
        self.validation = [name for name in config.data.validation if name in self.tasks]
        self.posteriors: dict[str, LoadedPosterior] = {
            entry.posterior: load_posterior(entry.posterior) for entry in config.methods if entry.posterior
        }
        for entry in config.methods:
            self._check(entry)
        self._asked = self._questions()
        self.foreign = neighbours(list(self.tasks.values()), self.collection.about)

    @property
    def shots(self) -> tuple[str, ...]:
        """Every k, as text."""
        return tuple(map(str, self.config.shots))

    def cells(self) -> list[Cell]:
        """Return every cell that the configuration asks for."""
        return [
            cell
            for entry in self.config.methods
            for cell in plan([entry.name], self._tasks_of(entry), self.shots, self.config.seeds)
        ]

    def entry(self, method: str) -> Entry:
        """Return the entry of the method with this name."""
        return next(entry for entry in self.config.methods if entry.name == method)

    def posterior(self, entry: Entry) -> LoadedPosterior | None:
        """Return the posterior that the entry starts from; None for an untrained one."""
        return self.posteriors[entry.posterior] if entry.posterior else None

    def episode(self, cell: Cell) -> Episode:
        """Draw the cell's support, and take its test items and its foreign items."""
        config, foreign = self.config, self.foreign.get(cell.task)
        return episode(
            self.tasks[cell.task], cell.shots, cell.seed,
            items=config.items, foreign=self.tasks.get(foreign or ""), foreign_items=config.foreign_items,
            asked=self._asked.get(cell.task),
        )  # fmt: skip

    def describe(self, entry: Entry) -> dict[str, Any]:
        """Return what the cells of a method depend on, as plain values."""
        posterior = self.posterior(entry)
        shared = ["base", "quantisation", "adapter", "template", "serve", "items", "foreign_items"]
        values = TypeAdapter(EvaluationConfig).dump_python(self.config, mode="json")
        values["adapter"] = self.config.posterior.to_json()
        if self.config.data.instructions is not None:
            values["asked"] = {name: values["data"][name] for name in ("wording", "described")}
            shared.append("asked")
        return {
            **TypeAdapter(Entry).dump_python(entry, mode="json", exclude={"name", "splits"}),
            "digest": posterior.manifest.digest if posterior else None,
            **{name: values[name] for name in shared},
        }

    def _questions(self) -> dict[str, TaskQuestion]:
        """Return what each task is asked; nothing without a file of instructions."""
        data = self.config.data
        if data.instructions is None:
            return {}
        known = read_instructions(data.instructions)
        if missing := [name for name in self.tasks if name not in known]:
            raise AbmllError(f"{data.instructions.name} has no instructions of {', '.join(missing)}")
        return {
            name: own_question(known[name], data.wording, described=data.described) for name in self.tasks
        }

    def _tasks_of(self, entry: Entry) -> list[str]:
        chosen = [names for split, names in self.splits.items() if not entry.splits or split in entry.splits]
        names = _unique([*chosen, self.validation if entry.name in self.config.temperature else ()])
        if entry.method.needs_fixed_classes:
            names = [name for name in names if classes_of(self.tasks[name])]
        return names

    def _check(self, entry: Entry) -> None:
        """Raise unless the posterior says what it was trained on, and that is none of its tasks."""
        posterior = self.posterior(entry)
        if posterior is None:
            return
        manifest = posterior.manifest
        if "data" not in manifest.training:
            raise AbmllError(f"{manifest.id} does not say what it was trained on: it cannot be tested")
        trained_on = {row["task"] for row in manifest.training["data"]}
        check_unseen(manifest.id, trained_on, self._tasks_of(entry), self.collection.about)


def _splits(config: EvaluationConfig, collection: Collection) -> dict[str, list[str]]:
    data = config.data
    found = {split: collection.names(split, data.side) for split in data.splits}
    if data.tasks:
        found["tasks"] = list(data.tasks)
    found = {split: [name for name in names if name not in data.leave_out] for split, names in found.items()}
    overlap = [name for name in _unique(found.values()) if name in data.validation]
    if not any(found.values()) or overlap:
        raise AbmllError(f"no tasks to test on, or some are for validation too: {', '.join(overlap)}")
    return found


def _unique(lists: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))
