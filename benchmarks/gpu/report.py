"""Sections of a page, each with a share of the time, written as soon as it ends."""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TypeVar

import torch

from benchmarks import common

T = TypeVar("T")
DONE, RUNNING = "done", "began, did not end"


class OutOfTimeError(BaseException):
    """The time of a section is over. No `except Exception` on the way may keep it."""


@contextmanager
def cut_after(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` in the body once `seconds` are over (main thread, Unix).

    A call into a library ends first. A timer that was running goes on.
    """

    def stop(*_: object) -> None:
        raise OutOfTimeError

    started, handler = time.monotonic(), signal.signal(signal.SIGALRM, stop)
    outer, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if outer:
            left = outer - (time.monotonic() - started)
            signal.setitimer(signal.ITIMER_REAL, max(left, 0.001))


@dataclass
class Section:
    """A part of the page: sentences and one table. Rows that a cut section has made stay."""

    name: str
    state: str = RUNNING
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    head: list[str] = field(default_factory=list)
    rows: list[list[object]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def note(self, sentence: str) -> None:
        """Add a sentence."""
        self.notes.append(sentence)

    def row(self, *cells: object) -> None:
        """Add a row."""
        self.rows.append(list(cells))

    def compare(self, what: str, difference: float, allowed: float) -> None:
        """Note a difference. Where it is too large, the section says so and the run fails."""
        sentence = f"{what}: largest difference {difference:.1e} (allowed {allowed:g})."
        if not difference <= allowed:
            sentence = f"**They differ.** {sentence}"
            self.wrong.append(sentence)
        self.notes.append(sentence)

    def page(self) -> list[str]:
        """Return the section in Markdown, by paragraph."""
        heading = [f"## {self.name}", " ".join([f"{self.state}; {self.seconds:.1f} s.", *self.notes])]
        return [*heading, common.table(self.head, self.rows)] if self.rows else heading


class Report:
    """Runs sections one after another within `seconds`, and keeps the page up to date.

    The share of a section begins when the one before ends, so time that one leaves is there for
    those behind it.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        seconds: float,
        title: str,
        about: Sequence[str],
        dtype: torch.dtype,
    ) -> None:
        self._options, self._title, self._about, self._dtype = options, title, about, dtype
        self._seconds, self._started, self._shares = seconds, time.monotonic(), 0.0
        self.sections: list[Section] = []

    @property
    def failed(self) -> bool:
        """Return whether a section failed, or compared two things that differ."""
        return any(section.wrong for section in self.sections)

    def run(self, name: str, share: float, work: Callable[[Section], T]) -> T | None:
        """Run a section until the shares so far are used. Return its result, None without one."""
        section = Section(name)
        self.sections.append(section)
        self._shares += share
        started = time.monotonic()
        left = self._started + self._shares * self._seconds - started
        result = None
        try:
            with cut_after(max(left, 0.001)):
                result = work(section)
            section.state = DONE
        except OutOfTimeError:
            section.state = f"**cut after its {max(left, 0):.0f} s: what is missing was not measured**"
        except Exception as error:  # one that fails must not cost the others
            lines = str(error).splitlines() or [""]
            section.state = f"**failed**: {type(error).__name__}: {lines[0]}"
            section.wrong.append(section.state)
        section.seconds = time.monotonic() - started
        print(f"{name}: {section.state} ({section.seconds:.1f} s)", *section.notes, sep="\n  ", flush=True)
        self.save()
        return result

    def save(self, *, show: bool = False) -> None:
        """Write the page and its data."""
        tables = [paragraph for section in self.sections for paragraph in section.page()]
        data = {"sections": [asdict(section) for section in self.sections]}
        common.write_results(
            "gpu", self._title, self._about, tables, data, self._options, self._dtype, show=show
        )
