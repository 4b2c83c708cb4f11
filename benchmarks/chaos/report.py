"""What a fault's benchmark says: promises with what was found, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks import common


@dataclass(frozen=True)
class Check:
    """One promise: what was asked, what was found, and whether it held."""

    asked: str
    found: str
    held: bool


@dataclass
class Report:
    """The findings of one fault, in the order in which they were made."""

    title: str
    about: list[str]
    checks: list[Check] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def check(self, asked: str, found: object, held: bool) -> None:
        """Add a promise with what was found of it."""
        self.checks.append(Check(asked, str(found), held))
        print(f"{'held  ' if held else 'BROKEN'} {asked}: {found}", flush=True)

    def none(self, asked: str, found: Mapping[str, int] | list[Any], shown: int = 5) -> None:
        """Add the promise that there is none of something, with the first few that there are."""
        rows = [f"{key}: {count}" for key, count in found.items()] if isinstance(found, Mapping) else found
        text = "none" if not rows else f"{len(rows)}: {'; '.join(map(str, rows[:shown]))}"
        self.check(asked, text, not rows)

    def table(self, heading: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Add a table below its heading."""
        self.tables += [heading, common.table(head, rows)]

    @property
    def held(self) -> bool:
        """Whether each promise held."""
        return bool(self.checks) and all(check.held for check in self.checks)

    def content(self) -> dict[str, Any]:
        """Return the checks and the data."""
        return {"checks": [asdict(check) for check in self.checks], **self.data}

    def promises(self) -> str:
        """Return the table of the promises."""
        rows = [[c.asked, c.found.replace("|", "/"), "yes" if c.held else "NO"] for c in self.checks]
        return common.table(["asked", "found", "held"], rows)
