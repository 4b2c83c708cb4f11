import sys

import pytest

from benchmarks.label import Command, Found, Part, Reading, page

MB = 10**6
DRAWS = """
import sys, time
print(f"a word, {sys.stderr.isatty()}", file=sys.stderr)
for done in (0, 32, 64):
    sys.stderr.write(f"\\r\\x1b[2Krows \\x1b[32m----\\x1b[0m {done:>3}/100 1.5 a second left 0:00:20")
    sys.stderr.flush()
    time.sleep(1)
time.sleep(float(sys.argv[1]))
sys.exit(int(sys.argv[2]))
"""


def run(seconds: float, status: int, stop_at: int) -> Part:
    return Command([sys.executable, "-c", DRAWS, str(seconds), str(status)]).run(stop_at)


def test_the_bar_of_a_terminal_is_read_and_the_command_killed_at_its_rows() -> None:
    part = run(60, 0, stop_at=64)
    assert part.seconds < 30
    assert part.bar == "rows ----  64/100 1.5 a second left 0:00:20"
    assert [reading.rows for reading in part.readings][-1] == 64
    assert all(reading.bytes > 0 for reading in part.readings)


def test_a_command_that_fails_ends_the_benchmark() -> None:
    with pytest.raises(SystemExit, match="ended with 3"):
        run(0, 3, stop_at=101)


def test_the_page_has_the_rate_the_memory_and_whether_each_row_is_there_once() -> None:
    readings = [Reading(10 + n, 10 * n, (200 if n < 5 else 210) * MB) for n in range(11)]
    part = Part(21.0, readings, "rows ---- 100/100 10.0 a second left 0:00:00")
    text = page(Found(200, [part, part], 200, True), "Command: `x`.")
    assert "| 2 | 21 | 0 | 100 | 10 | 200 | 210 |" in text
    assert "`kill -9` 1 times" in text
    assert "200 rows, each once and in order" in text
    assert "rows ---- 100/100" in text
    assert "NOT each once" in page(Found(200, [part], 199, False), "")
