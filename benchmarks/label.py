"""Label a long CSV with `abmll label`, kill it in the middle, and go on with the same command.

    python -m benchmarks.label --rows 100000 --out label.md
    python -m benchmarks.label --rows 2000 --kills 2

The base is a tiny random model, unless `--model` and its options are given: what is measured is the
command, not the model. The command has a terminal of its own, so that it draws its progress bar. It
is killed with its children, by `kill -9`, at equal parts of the rows. Each row has to be in the
answers once, in order.
"""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import psutil

from benchmarks import common
from benchmarks.chaos.setup import tiny_base
from service.schemas import demo

SAMPLES = 4
READ_SECONDS = 0.5
COLUMNS = 100  # of the command's terminal
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BAR = re.compile(r"rows \S.*?(\d+)/\d+.*? left +[\d:-]+")


@dataclass(frozen=True)
class Reading:
    """Seconds since the start, rows that are done, resident bytes of the command's processes."""

    seconds: float
    rows: int
    bytes: int


@dataclass(frozen=True)
class Part:
    """One start of the command, until it ended or was killed, and its progress bar at the end."""

    seconds: float
    readings: Sequence[Reading]
    bar: str

    @property
    def rows(self) -> int:
        """The rows that the readings saw it do."""
        return self.readings[-1].rows - self.readings[0].rows

    @property
    def rate(self) -> float:
        """The rows a second between the first and the last reading."""
        return self.rows / max(1e-9, self.readings[-1].seconds - self.readings[0].seconds)

    def memory(self, low: float, high: float) -> float:
        """Return the median memory in MB between two parts of its rows."""
        first = self.readings[0].rows
        chosen = [r.bytes for r in self.readings if low <= (r.rows - first) / max(1, self.rows) <= high]
        return statistics.median(chosen) / 1e6 if chosen else float("nan")


@dataclass(frozen=True)
class Found:
    """What all starts of the command gave."""

    rows: int
    parts: Sequence[Part]
    answered: int
    in_order: bool


class Command:
    """A start of `abmll label` on a terminal. Owns its process and what its bar shows."""

    def __init__(self, command: Sequence[str]) -> None:
        self._began = time.monotonic()
        master, slave = pty.openpty()
        ioctl(slave, TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        environment = {**os.environ, "TERM": "xterm"}
        self._process = subprocess.Popen(command, stdout=slave, stderr=slave, env=environment)
        os.close(slave)
        self.shown, self.bar, self.readings = "", "", list[Reading]()
        self._reader = threading.Thread(target=self._read, args=[master])
        self._reader.start()

    def _read(self, master: int) -> None:
        """Keep the end of what the terminal shows. A terminal without a process is an `OSError`."""
        try:
            while data := os.read(master, 1 << 16):
                self.shown = (self.shown + _CONTROL.sub("", data.decode("utf-8", "replace")))[-4000:]
        except OSError:
            pass
        finally:
            os.close(master)

    def run(self, stop_at: int) -> Part:
        """Read rows and memory until the command ends, or kill it at `stop_at` rows.

        Raises `SystemExit` where it fails.
        """
        while self._process.poll() is None:
            time.sleep(READ_SECONDS)
            if not (bars := list(_BAR.finditer(self.shown))):
                continue
            self.bar, rows = bars[-1].group(), int(bars[-1].group(1))
            self.readings.append(Reading(time.monotonic() - self._began, rows, sum(self._resident())))
            if rows >= stop_at:
                self._kill()
        self._reader.join()
        if self._process.returncode not in {0, -9} or not self.readings:
            raise SystemExit(f"the command ended with {self._process.returncode}: {self.shown}")
        return Part(time.monotonic() - self._began, self.readings, self.bar)

    def _processes(self) -> list[psutil.Process]:
        try:
            own = psutil.Process(self._process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _resident(self) -> Iterator[int]:
        for process in self._processes():
            try:
                yield int(process.memory_info().rss)
            except psutil.Error:  # it has ended meanwhile
                continue

    def _kill(self) -> None:
        processes = self._processes()
        for process in processes:
            process.kill()
        self._process.wait()


def write_rows(path: Path, rows: int) -> None:
    """Write a CSV of rows with two columns beside the text, some texts of two lines."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "input", "queue"])
        for number in range(rows):
            text = demo.INPUTS[number % len(demo.INPUTS)]
            end = "\nPlease, answer soon." if number % 7 == 0 else ""
            writer.writerow([number, f"Order {number}: {text}{end}", "mails"])


def measure(rows: int, kills: int, model: Sequence[str]) -> Found:
    """Make an adapter, and label the rows with kills in between."""
    abmll = str(Path(sys.executable).parent / "abmll")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = [*(model or tiny_base(folder / "base")), "--data-dir", str(folder / "data")]
        support, table, out = folder / "support.jsonl", folder / "rows.csv", folder / "labelled.csv"
        cases = [{"input": text, "output": label, "options": demo.OPTIONS} for text, label in demo.SUPPORT]
        support.write_text("".join(json.dumps(case) + "\n" for case in cases))
        made = subprocess.run(
            [abmll, "adapt", str(support), "--json", *options], capture_output=True, text=True, check=True
        )
        adapter = json.loads(made.stdout)["id"]
        write_rows(table, rows)
        command = [abmll, "label", str(table), "--adapter", adapter, "--out", str(out)]
        command += ["--samples", str(SAMPLES), *options]
        stops = [rows * (number + 1) // (kills + 1) for number in range(kills)]
        parts = [Command(command).run(stop) for stop in (*stops, rows + 1)]
        with table.open(newline="") as given, out.open(newline="") as labelled:
            asked, found = list(csv.DictReader(given)), list(csv.DictReader(labelled))
    kept = [{name: row[name] for name in ("id", "input", "queue")} for row in found]
    complete = all(row["answer"] in demo.OPTIONS and row["adapter_id"] == adapter for row in found)
    return Found(rows, parts, len(found), kept == asked and complete)


def page(found: Found, how: str) -> str:
    """Return the page of results."""
    rows = [
        [number + 1, part.seconds, part.readings[0].rows, part.readings[-1].rows, part.rate,
         part.memory(0.1, 0.4), part.memory(0.7, 1.0)]
        for number, part in enumerate(found.parts)
    ]  # fmt: skip
    head = ["start", "seconds", "rows at first", "at last", "rows a second", "MB early", "MB late"]
    order = "each once and in order" if found.in_order else "NOT each once and in order"
    bars = "\n".join(part.bar for part in found.parts)
    return f"""# A long file labelled on the command line

{how}

`abmll label` answered {found.rows:,} rows of a CSV, {SAMPLES} samples each. It was killed with
`kill -9` {len(found.parts) - 1} times, and started again by the same command. The file of answers has
{found.answered:,} rows, {order}, with all columns of the rows.

{common.table(head, rows)}

Memory is that of all processes of the command: the median between a tenth and four tenths of the
rows of a start, and that of its last three tenths. The progress bar at the end of each start:

```
{bars}
```
"""


def main() -> None:
    """Run the benchmark."""
    parser = common.parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--out", type=Path, help="page to write")
    arguments, options = parser.parse_known_args()
    found = measure(arguments.rows, arguments.kills, options)
    common.show_page(page(found, common.how_made("benchmarks.label")), arguments.out)
    if not found.in_order:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
