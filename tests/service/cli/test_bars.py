"""Bars are as long as their probability, in characters that the terminal has, and only on one."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from service.cli.bars import WIDTH, bar_for, bar_lines, of_blocks, of_hashes
from service.cli.tables import MOST_BARS, decision_tables


def console(encoding: str = "utf-8", *, terminal: bool = True) -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    return Console(file=file, force_terminal=terminal, width=160, color_system=None)


@pytest.mark.parametrize("draw", [of_blocks, of_hashes])
def test_a_bar_is_as_long_as_its_probability(draw: Any) -> None:
    size = {
        "█": 1.0,
        "#": 1.0,
        "▏": 0.125,
        "▎": 0.25,
        "▍": 0.375,
        "▌": 0.5,
        "▋": 0.625,
        "▊": 0.75,
        "▉": 0.875,
    }
    for thousandths in range(1001):
        bar = draw(thousandths / 1000)
        assert len(bar) == WIDTH
        least = 1 / 16 if draw is of_blocks else 1 / 2
        assert abs(sum(size.get(c, 0.0) for c in bar) - thousandths / 1000 * WIDTH) <= least + 1e-9


def test_the_terminal_chooses_the_characters() -> None:
    assert bar_for(console()) is of_blocks
    assert bar_for(console("ascii")) is of_hashes
    assert bar_for(console("latin-1")) is of_hashes
    assert bar_for(console(terminal=False)) is None
    assert bar_lines(of_hashes, [("a", 1.0), ("bcd", 0.5)]) == [
        "a   #################### 1.00",
        "bcd ##########.......... 0.50",
    ]


def answer(probabilities: list[tuple[Any, float]]) -> dict[str, Any]:
    row = {
        "answer": probabilities[0][0], "expected_level": None, "learned": True, "answerable": None, "confidence": 0.5,
        "standard_error": 0.0, "decision": "answer",
        "probabilities": [{"value": value, "probability": p} for value, p in probabilities],
    }  # fmt: skip
    timings = {"adapt_seconds": 0.0, "predict_seconds": 0.0}
    return {
        "adapter_id": None, "model": "m", "timings": timings, "results": [{"index": 0, "answers": {"q": row}}],
    }  # fmt: skip


def printed(found: dict[str, Any], to: Console) -> str:
    to.print(decision_tables(found, ["text"], bar_for(to)))
    to.file.flush()
    buffer: Any = to.file
    return str(buffer.buffer.getvalue().decode(to.encoding))


def test_a_decision_shows_the_bars_of_its_likeliest_options() -> None:
    text = printed(answer([(True, 0.75), (False, 0.25)]), console("ascii"))
    assert "yes ###############..... 0.75" in text
    assert "no  #####............... 0.25" in text
    many = printed(answer([(f"[{n}]", n / 100) for n in range(12)]), console())
    assert "[11]" in many
    assert "[3] " not in many
    assert many.count(" 0.") >= MOST_BARS
    assert "and 4 more" in many
    assert "probabilities" not in printed(answer([("a", 1.0)]), console(terminal=False))
