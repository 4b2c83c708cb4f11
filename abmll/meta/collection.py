"""Folder of tasks in the format of CrossFit and MetaICL, with its list of tasks and its splits.

A split says which tasks are trained on and which are tested.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abmll.errors import AbmllError
from abmll.text.files import read_task
from abmll.text.tasks import Task
from abmll.text.text_files import read_text


@dataclass(frozen=True)
class Collection:
    """Tasks in `folder`, one sub-folder each.

    `about` is the entry of each task in `tasks.json`. `splits` are the splits by name.
    """

    folder: Path
    about: dict[str, dict[str, Any]]
    splits: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, folder: Path) -> Collection:
        """Read `tasks.json` and `splits.json`, where there are such files.

        Without `tasks.json`, every sub-folder with a `train.jsonl` is a task. Raises `AbmllError`
        where there is no task, and for a file that is not of this form.
        """
        index, splits = folder / "tasks.json", folder / "splits.json"
        if index.exists():
            try:
                about = {entry["task"]: entry for entry in _read_json(index)["tasks"]}
            except (KeyError, TypeError) as error:
                raise AbmllError('tasks.json is not {"tasks": [{"task": NAME, ...}, ...]}') from error
        else:
            about = {path.parent.name: {} for path in sorted(folder.glob("*/train.jsonl"))}
        if not about:
            raise AbmllError(f"{folder} holds no tasks: expected TASK/train.jsonl and TASK/test.jsonl")
        return cls(folder, about, _read_json(splits) if splits.exists() else {})

    def names(self, split: str, side: str) -> list[str]:
        """Return the tasks of one side (`train`, `test`) of a split, in its order.

        Tasks that are not in the folder are left out. So are training tasks that have inputs of a
        test task, where the split lists them: only the labels of such inputs would be unseen.
        Raises `AbmllError` for an unknown split.
        """
        if split not in self.splits:
            raise AbmllError(f"unknown split {split!r}; known are {', '.join(self.splits)}")
        have = self.splits[split][side]
        return [name for name in have.get("have_disjoint", have["have"]) if name in self.about]

    def read(self, names: Sequence[str]) -> list[Task]:
        """Read some tasks. Raises `AbmllError` for a task that is not in the folder."""
        missing = [name for name in names if name not in self.about]
        if missing:
            raise AbmllError(f"no such tasks in {self.folder.name}: {', '.join(missing)}")
        return [read_task(self.folder / name) for name in names]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise AbmllError(f"{path.name} line {error.lineno} is not JSON: {error.msg}") from error
