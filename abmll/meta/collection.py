"""A folder of tasks in CrossFit/MetaICL form: its task list, its official splits, and what may not be trained together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abmll.errors import AbmllError
from abmll.text.files import read_task
from abmll.text.tasks import Task


@dataclass(frozen=True)
class Collection:
    """`folder` with one sub-folder a task; `about` is the entry of each in `tasks.json`, `splits` the named task lists."""

    folder: Path
    about: dict[str, dict[str, Any]]
    splits: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, folder: Path) -> Collection:
        """Read `tasks.json` and `splits.json`, or take every sub-folder with a `train.jsonl` as a task."""
        index, splits = folder / "tasks.json", folder / "splits.json"
        if index.exists():
            about = {entry["task"]: entry for entry in json.loads(index.read_text("utf-8"))["tasks"]}
        else:
            about = {path.parent.name: {} for path in sorted(folder.glob("*/train.jsonl"))}
        if not about:
            raise AbmllError(f"{folder} holds no tasks: expected TASK/train.jsonl and TASK/test.jsonl")
        return cls(folder, about, json.loads(splits.read_text("utf-8")) if splits.exists() else {})

    def names(self, split: str, side: str) -> list[str]:
        """Tasks of one side (`train`, `test`) of an official split that are here, in the official order.

        Train tasks that share their inputs with a test task are left out: only the labels would be unseen.
        """
        if split not in self.splits:
            raise AbmllError(f"unknown split {split!r}; known are {', '.join(self.splits)}")
        have = self.splits[split][side]
        return [name for name in have.get("have_disjoint", have["have"]) if name in self.about]

    def read(self, names: Sequence[str]) -> list[Task]:
        """The tasks' examples. Raises `AbmllError` for a task that is not here."""
        missing = [name for name in names if name not in self.about]
        if missing:
            raise AbmllError(f"no such tasks in {self.folder.name}: {', '.join(missing)}")
        return [read_task(self.folder / name) for name in names]
