"""Where each task of the collection comes from: the records of `sources.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from abmll.errors import AbmllError
from lab.configuration import read_configuration

SHIPPED = Path(__file__).with_name("sources.yaml")


@dataclass(frozen=True)
class Labels:
    """The answer is a class: column `label` holds it.

    `names` are our labels: a list in the order of the column's numbers, or a mapping from its
    texts.
    """

    label: str
    names: tuple[str, ...] | dict[str, str]


@dataclass(frozen=True)
class FreeText:
    """The answer is the text in column `text`, or the one item of the list in it.

    Rows whose list has another number of items are left out.
    """

    text: str


@dataclass(frozen=True)
class Choice:
    """The answer is one of the options of its row: column `answer` holds the number of it, from 0.

    `options` is the column of a list, or the columns of one option each.
    """

    answer: str
    options: str | tuple[str, ...]


@dataclass(frozen=True)
class Better:
    """The answer says which of two texts is the one of column `better`; the other is `worse`.

    The input has them as `{first}` and `{second}`, in an order drawn by the seed.
    """

    better: str
    worse: str


@dataclass(frozen=True)
class TaskSource:
    """Files of one task, and what their rows mean.

    `repository` is a dataset repository of the hub, at `revision`. `train` and `test` are files in
    it; without `test`, the rows of `train` are split by the seed. `input` is the text of an input,
    with columns in braces. `only` keeps the rows in which a column has one of these values.
    `licence` is what the source states. `sha256` are digests of files, where they are known.
    `note` says in what the task differs from the one that the shipped posterior was trained on.
    """

    repository: str
    revision: str
    train: tuple[str, ...]
    input: str
    output: Labels | FreeText | Choice | Better
    licence: str
    test: tuple[str, ...] = ()
    format: Literal["parquet", "csv", "json"] = "parquet"
    only: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def kind(self) -> str:
        """Return the type of the task, as `tasks.json` names it."""
        kinds = {Choice: "multiple_choice", FreeText: "generation"}
        return kinds.get(type(self.output), "classification")


@dataclass(frozen=True)
class Sources:
    """The sources of tasks by name, and why other tasks have none."""

    tasks: dict[str, TaskSource]
    not_covered: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path = SHIPPED) -> Sources:
        """Read a manifest. Raises `AbmllError` as `read_configuration`."""
        return read_configuration(cls, path)

    def chosen(self, names: Sequence[str]) -> dict[str, TaskSource]:
        """Return the sources of these tasks, or of all. Raises `AbmllError` for an unknown task."""
        for name in names:
            if name in self.not_covered:
                raise AbmllError(f"task {name} has no source here: {self.not_covered[name]}")
            if name not in self.tasks:
                raise AbmllError(f"no task {name!r}: `abmll tasks list` shows those that there are")
        return {name: self.tasks[name] for name in names or self.tasks}


def stated(source: TaskSource) -> dict[str, Any]:
    """Return what `tasks.json` says of a source, whatever was fetched."""
    return {"type": source.kind, "licence": source.licence, "notes": source.note}
