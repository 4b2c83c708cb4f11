"""Ticket triage: a small model answers where it is sure, a fallback the rest, humans what is left.

    abmll serve &
    python docs/examples/ticket_triage.py --url http://127.0.0.1:8000

Tickets are JSON Lines with `text` and, where it is known, `label`; without `--tickets`, the demo's.
docs/ticket-triage.md explains it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from abmll_client import Client, ConfidenceGate, GateResult, GateStatistics, from_client
from service.schemas import demo

KEYWORDS = {
    "billing": ("invoice", "refund", "charge", "price"),
    "delivery": ("parcel", "package", "courier", "tracking"),
    "technical problem": ("crash", "error", "freeze"),
    "account access": ("password", "log in", "sign in", "locked"),
}


def by_keyword(text: str) -> str | None:
    """Return the one category whose words appear, or None. A larger model can stand here."""
    found = {label for label, words in KEYWORDS.items() if any(word in text.lower() for word in words)}
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class Costs:
    """What one answer of each source costs, in any unit. The model is asked for every ticket."""

    model: float
    fallback: float
    human: float

    def of(self, statistics: GateStatistics) -> dict[str, float]:
        """Costs by source.

        A fallback that passed or failed was asked too, so every ticket that was not accepted
        counts.
        """
        refused = statistics.fallen_back + statistics.queued
        return {
            "model": statistics.seen * self.model,
            "fallback": refused * self.fallback,
            "human": statistics.queued * self.human,
        }


def triage(
    client: Client,
    tickets: Sequence[tuple[str, str | None]],
    *,
    min_confidence: float,
    fallback: Callable[[str], str | None] = by_keyword,
    samples: int = 16,
) -> tuple[list[GateResult], GateStatistics]:
    """Adapt to the demo's sixteen labelled tickets, decide on each ticket, record known labels."""
    adapter = client.create_adapter(demo.SUPPORT, options=demo.OPTIONS)
    gate = ConfidenceGate(
        from_client(client, adapter_id=adapter.id, samples=samples, gate={"min_confidence": min_confidence}),
        fallback=fallback,
    )
    results = gate.decide([text for text, _ in tickets])
    for result, (_, label) in zip(results, tickets, strict=True):
        if label is not None:
            gate.record(result, label)
    return results, gate.statistics


def report(statistics: GateStatistics, costs: Costs, seconds: float) -> Table:
    """Make a table of how many tickets each source answered, how well, and at what cost."""
    table = Table(title=f"{statistics.seen} tickets in {seconds:.1f} s")
    for column in ("", "tickets", "fraction", "cost"):
        table.add_column(column, justify="left" if not column else "right")
    counts = {"model": statistics.accepted, "fallback": statistics.fallen_back, "human": statistics.queued}
    spent = costs.of(statistics)
    for source, count in counts.items():
        table.add_row(source, str(count), f"{count / statistics.seen:.0%}", f"{spent[source]:.4g}")
    table.add_row("total", str(statistics.seen), "100%", f"{sum(spent.values()):.4g}", style="bold")
    table.add_row("all by humans", str(statistics.seen), "", f"{statistics.seen * costs.human:.4g}")
    if statistics.mean_confidence is not None:
        table.add_row("mean confidence of the model", "", f"{statistics.mean_confidence:.2f}", "")
    if statistics.accuracy is not None:
        right = f"{statistics.correct} of {statistics.labelled}"
        table.add_row("right among the accepted", right, f"{statistics.accuracy:.0%}", "")
    return table


def read_tickets(path: Path | None) -> list[tuple[str, str | None]]:
    """Read (text, label or None) of each line; without a file, the demo's texts."""
    if path is None:
        return [(text, None) for text in demo.INPUTS]
    rows = map(json.loads, path.read_text("utf-8").splitlines())
    return [(row["text"], row.get("label")) for row in rows]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="a running server")
    parser.add_argument("--tickets", type=Path, help="JSON Lines with text and perhaps label")
    parser.add_argument("--min-confidence", type=float, default=0.6)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--cost-model", type=float, default=0.0002)
    parser.add_argument("--cost-fallback", type=float, default=0.01)
    parser.add_argument("--cost-human", type=float, default=0.5)
    given = parser.parse_args(arguments)
    tickets = read_tickets(given.tickets)
    with Client(given.url) as client:
        client.wait_until_ready()
        started = time.monotonic()
        results, statistics = triage(
            client, tickets, min_confidence=given.min_confidence, samples=given.samples
        )
        seconds = time.monotonic() - started
    console = Console()
    for result in results:
        answer = result.answer or f"to a human ({result.reason})"
        console.print(
            f"{result.source:8} {result.model_answer.confidence:.2f}  {answer:18}  {result.text}",
            markup=False,
        )
    console.print(report(statistics, Costs(given.cost_model, given.cost_fallback, given.cost_human), seconds))


if __name__ == "__main__":
    main()
