"""The best speed of several starts is kept; what cannot be kept or read changes nothing."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from abmll.work import Speed, Work
from service.executors.known_speeds import best_known, machine

USUAL = Work(frozen_tokens=100.0, draws=3.0)
IDLE, BUSY = (Speed(tuple(seconds for _ in fields(Work))) for seconds in (1e-3, 4e-3))


def test_a_start_on_a_busy_machine_has_the_speed_of_an_idle_one(tmp_path: Path) -> None:
    assert best_known(tmp_path / "speeds", "model", BUSY, USUAL) == BUSY
    assert best_known(tmp_path / "speeds", "model", IDLE, USUAL) == IDLE
    assert best_known(tmp_path / "speeds", "model", BUSY, USUAL) == IDLE
    assert best_known(tmp_path / "speeds", "another model", BUSY, USUAL) == BUSY
    assert len(list((tmp_path / "speeds").iterdir())) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seconds_of": [1]}', '{"seconds_of": [NaN]}'])
def test_what_cannot_be_read_is_measured_again(tmp_path: Path, text: str) -> None:
    best_known(tmp_path, "model", IDLE, USUAL)
    (kept,) = tmp_path.iterdir()
    kept.write_text(text)
    assert best_known(tmp_path, "model", BUSY, USUAL) == BUSY
    assert best_known(tmp_path, "model", BUSY, USUAL) == BUSY


def test_where_nothing_can_be_written_the_measured_speed_counts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert best_known(tmp_path / "file" / "speeds", "model", BUSY, USUAL) == BUSY


def test_a_machine_has_the_same_text_each_time() -> None:
    assert machine("cpu") == machine("cpu") != machine("a GPU")
