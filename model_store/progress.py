"""Show the progress of long work on the terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from model_store.terminal import visible

Report = Callable[[str, int, int], None]
"""Called as `report(what, done, total)`: the stage, and how much is done in any unit.

`total` is 0 if it is not known.
"""

_log = logging.getLogger(__name__)


class _AsItIs(TextColumn):
    """Column of texts of others: markup, emoji codes and control characters are not obeyed."""

    def render(self, task: Task) -> Text:
        """Return the text of the bar."""
        return Text(visible(self.text_format.format(task=task)), style=self.style)


def no_report(what: str, done: int, total: int) -> None:
    """Do nothing, as a `Report`."""


@contextmanager
def progress_bar() -> Iterator[Report]:
    """Yield a `Report` that draws one line on standard error, from the first report on.

    Each new stage is logged as well, for output without a terminal.
    """
    columns = (SpinnerColumn(), _AsItIs("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(file=sys.stderr)
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task: TaskID | None = None
    current = ""

    def report(what: str, done: int, total: int) -> None:
        nonlocal task, current
        if task is None or what != current:
            _log.info("%s", what)
            bar.start()
            if task is not None:
                bar.remove_task(task)
            task, current = bar.add_task(what, total=total or None), what
        bar.update(task, completed=done)

    try:
        yield report
    finally:
        bar.stop()


def counting_bar(console: Console, detail: str = "") -> Progress:
    """Return a bar of counted work: name, bar, count, remaining time, and `detail`.

    `detail` is a format string of the task's fields, such as `{task.fields[cell]}`. Nothing is
    drawn without a terminal: see `line_without_terminal`.
    """
    return Progress(
        _AsItIs("{task.description}", style="bold"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        _AsItIs(detail),
        console=console,
        disable=not console.is_terminal,
    )


def line_without_terminal(console: Console, text: str) -> None:
    """Print `text` on a line of its own behind the time, where a bar cannot be drawn."""
    if not console.is_terminal:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {visible(text)}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
