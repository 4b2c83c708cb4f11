"""The app of the documentation, run as its page says, on the real model."""

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import Server
from tests.e2e.tickets import TICKETS

SCRIPT = Path(__file__).resolve().parents[2] / "docs/examples/ticket_triage.py"


def test_the_small_model_takes_the_tickets_it_is_sure_of_and_is_right_about_most(
    server: Server, tmp_path: Path
) -> None:
    tickets = tmp_path / "tickets.jsonl"
    tickets.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in TICKETS))
    command = [sys.executable, str(SCRIPT), "--url", str(server.client.base_url), "--tickets", str(tickets)]
    command += ["--min-confidence", "0.8"]
    printed = subprocess.run([*command, "--samples", "4"], check=True, capture_output=True, text=True).stdout
    counts = {source: int(n) for source, n in re.findall(r"│ (model|fallback|human) +│ +(\d+) ", printed)}
    assert sum(counts.values()) == len(TICKETS)
    assert counts["model"] > 0 < counts["fallback"] + counts["human"]
    (right, labelled) = map(int, re.findall(r"right among the accepted +│ +(\d+) of (\d+)", printed)[0])
    assert labelled == counts["model"]
    assert right / labelled >= 0.7
