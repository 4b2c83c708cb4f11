"""Names of tasks, runs and folders reach the terminal as they are."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from abmll.errors import AbmllError
from abmll.meta.inspection import TaskReport
from lab.commands import evaluate as evaluate_command
from lab.commands import failures, meta_train
from lab.evaluation.cells import Cell
from lab.evaluation.configuration import EvaluationConfig
from lab.training.configuration import TrainingConfig
from lab.training.dry_run import DryRun

WILD = "\x1b[2J\x9b31m :bug: [red]x[/] \u202eabc\u2028 \\"
SAFE = r"\u001b[2J\u009b31m :bug: [red]x[/] \u202eabc\u2028 " + "\\"


class Terminal(io.StringIO):
    """What a terminal without colours gets."""

    def console(self) -> Console:
        return Console(file=self, width=600, force_terminal=True, color_system=None, emoji=False)

    def check(self, count: int) -> None:
        """Raise unless the wild text is here `count` times, and nothing of it is obeyed."""
        text = self.getvalue()
        assert text.count(SAFE) >= count, text
        assert not {"\x9b", "\u202e", "\u2028"} & set(text)
        assert "\x1b[2J" not in text, "rich itself moves the cursor, and clears lines only"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    found = Terminal()
    for command in (meta_train, evaluate_command):
        monkeypatch.setattr(command, "console", found.console())
        monkeypatch.setattr(command, "err", found.console())
    monkeypatch.setattr(failures, "_err", found.console())
    return found


def test_a_dry_run_shows_names_and_problems_as_they_are(terminal: Terminal) -> None:
    task = TaskReport(WILD, 1, 1, 1, 1, 1.0, (f"every example is labelled {WILD}",))
    meta_train._show(DryRun((task,), ((WILD, WILD, 3),), 1.0, 1.0), 1)
    terminal.check(4)


def test_a_failure_is_shown_as_it_is(terminal: Terminal) -> None:
    with pytest.raises(typer.Exit), failures.failures_shown():
        raise AbmllError(WILD)
    terminal.check(1)


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of two visits, of which only the second is reported."""

    class Run:
        id = WILD
        meta = type("Meta", (), {"visits": 2})

    class Trained:
        prior = manifest = None

    def train(run: Any, folder: Path, on_visit: Any, *, resume: bool) -> type[Trained]:
        on_visit({"losses": [1.0], "visit": 2, "tasks": [WILD]})
        return Trained

    monkeypatch.setattr(TrainingConfig, "read", lambda path: Run)
    monkeypatch.setattr("lab.training.run.run_training", train)
    monkeypatch.setattr("model_store.posteriors.save_posterior", lambda *_: None)


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study of one cell."""

    class Study:
        id = WILD

    def run(study: Any, folder: Path, on_cell: Any, *, processes: int) -> None:
        on_cell(1, 1, Cell(WILD, WILD, "4", 1))

    monkeypatch.setattr(EvaluationConfig, "read", lambda path: Study)
    monkeypatch.setattr("lab.evaluation.run.run_evaluation", run)
    monkeypatch.setattr("lab.evaluation.results.write_report", lambda study, folder, command: folder)


def test_a_training_shows_its_tasks_and_folders_as_they_are(
    terminal: Terminal, tmp_path: Path, training: None
) -> None:
    meta_train.meta_train(tmp_path, tmp_path / WILD)
    terminal.check(4)  # the bar's name and task, the posterior's id and folder


def test_a_study_shows_its_cells_and_folders_as_they_are(
    terminal: Terminal, tmp_path: Path, study: None
) -> None:
    evaluate_command.evaluate(tmp_path, tmp_path / WILD)
    terminal.check(4)  # the bar's name and cell, which has two names, and the folder


def test_without_a_terminal_there_is_a_line_at_the_start_and_for_each_step(
    tmp_path: Path, training: None, study: None, capsys: pytest.CaptureFixture[str]
) -> None:
    times = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", re.MULTILINE)
    meta_train.meta_train(tmp_path, tmp_path / "run")
    assert times.sub("", capsys.readouterr().err).splitlines() == [
        f"meta-training {SAFE}: 2 visits, into {tmp_path / 'run'}",
        f"visit 2 of 2: {SAFE}, inner loss (last 20) 1.000",
    ]
    evaluate_command.evaluate(tmp_path, tmp_path / "run")
    assert times.sub("", capsys.readouterr().err).splitlines() == [
        f"evaluating {SAFE}, into {tmp_path / 'run'}",
        f"cell 1 of 1: {SAFE} {SAFE} k=4 seed 1",
    ]
