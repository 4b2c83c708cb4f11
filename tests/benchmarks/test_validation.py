"""Which tasks something may be chosen on: those that theta has not seen, and never none."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import validation
from lab.evaluation.protocol import LeakError


def served(left_out: list[str]) -> Any:
    training = {"config": {"data": {"leave_out": left_out}}, "data": [{"task": "seen"}]}
    return SimpleNamespace(manifest=SimpleNamespace(id="theta", training=training))


def options(data: Path, *tasks: str) -> argparse.Namespace:
    return argparse.Namespace(data=data, tasks=list(tasks), shots="2", seeds=[1, 2], items=1, quick=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("seen", "one", "two"):
        (tmp_path / name).mkdir()
        rows = [{"input": f"{name} {i}", "output": "ab"[i % 2], "options": ["a", "b"]} for i in range(4)]
        for part in ("train", "test"):
            (tmp_path / name / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return tmp_path


def test_the_tasks_asked_for_or_else_those_that_training_left_out(data: Path) -> None:
    def found(left_out: list[str], *tasks: str) -> list[tuple[str, int]]:
        return [
            (name, seed) for name, seed, _ in validation.episodes(served(left_out), options(data, *tasks))
        ]

    assert found(["one"]) == [("one", 1), ("one", 2)]
    assert found(["one"], "two") == [("two", 1), ("two", 2)]


def test_none_and_seen_tasks_are_refused(data: Path) -> None:
    with pytest.raises(SystemExit, match="--tasks"):
        next(validation.episodes(served([]), options(data)))
    with pytest.raises(LeakError, match="seen"):
        next(validation.episodes(served([]), options(data, "seen")))
