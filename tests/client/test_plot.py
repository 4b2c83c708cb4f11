"""Pictures of the client, against numbers that were counted by hand."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from abmll_client import plot
from abmll_client.models import Diagnosis, Prediction
from abmll_client.models.diagnosis import SuspectExample

ROOT = Path(__file__).parents[2]
LABELS = ["yes", "no", "yes", "no", "yes"]
# (confidence, answer): right, right, wrong, right, wrong
GIVEN = [(0.95, "yes"), (0.9, "no"), (0.9, "no"), (0.55, "no"), (0.5, "no")]


def prediction(confidence: float, answer: str) -> Prediction:
    return Prediction.model_construct(confidence=confidence, answer=answer)


PREDICTIONS = [prediction(*given) for given in GIVEN]


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    matplotlib.use("Agg")
    yield
    from matplotlib import pyplot

    pyplot.close("all")


def test_the_curve_has_a_point_for_each_threshold() -> None:
    shuffled = [3, 0, 4, 2, 1]
    points = plot.risk_coverage_points([PREDICTIONS[i] for i in shuffled], [LABELS[i] for i in shuffled])
    assert points == [(0.95, 0.2, 0.0), (0.9, 0.6, 1 / 3), (0.55, 0.8, 0.25), (0.5, 1.0, 0.4)]
    assert plot.risk_coverage_points([], []) == []


def test_bins_hold_means_and_counts() -> None:
    found = plot.reliability_bins([*PREDICTIONS, prediction(1.0, "yes")], [*LABELS, "yes"], bins=2)
    assert [b.answers for b in found] == [6]
    narrow = plot.reliability_bins(PREDICTIONS, LABELS)
    assert [(b.accuracy, b.answers) for b in narrow] == [(0.5, 2), (2 / 3, 3)]
    assert [b.confidence for b in narrow] == pytest.approx([0.525, 2.75 / 3])
    with pytest.raises(ValueError, match="at least 1 bin"):
        plot.reliability_bins([], [], bins=0)


@pytest.mark.parametrize("drawn", [plot.risk_coverage, plot.reliability])
def test_labels_are_as_many_as_answers(drawn: Any) -> None:
    with pytest.raises(ValueError, match="shorter"):
        drawn(PREDICTIONS, LABELS[:4])


def test_pictures_show_these_numbers() -> None:
    curve = plot.risk_coverage(PREDICTIONS, LABELS, target_error=0.1)
    line, target = curve.lines
    assert list(line.get_xdata()) == [0.2, 0.6, 0.8, 1.0]
    assert list(target.get_ydata()) == [0.1, 0.1]
    dots = plot.reliability(PREDICTIONS, LABELS).collections[0]
    assert list(dots.get_offsets().ravel()) == pytest.approx([0.525, 0.5, 2.75 / 3, 2 / 3])
    assert list(dots.get_sizes()) == pytest.approx([200 * 2 / 3, 200])
    assert plot.reliability(PREDICTIONS, LABELS, ax=curve) is curve


def test_the_board_names_each_suspect_and_obeys_no_text() -> None:
    suspects = [
        SuspectExample(index=0, label="a", answer="b", probability=0.7),
        SuspectExample(index=2, label="b", answer="a", probability=0.9),
    ]
    found = Diagnosis.model_construct(suspects=suspects)
    board = plot.label_board(found, ["$\\frac{", "unsuspected", "x" * 60])
    board.figure.canvas.draw()
    names = [label.get_text() for label in board.get_yticklabels()]
    assert names == ["$\\frac{\na, or b?", f"{'x' * 47}…\nb, or a?"]
    assert [bar.get_width() for bar in board.patches] == [0.7, 0.9]
    assert plot.label_board(found).get_yticklabels()[1].get_text() == "example 2\nb, or a?"
    assert plot.label_board(Diagnosis.model_construct(suspects=[])).get_title() == "No label looks wrong"


def test_the_client_needs_no_matplotlib_until_it_draws() -> None:
    script = "import sys, abmll_client.plot; print('matplotlib' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"


def test_the_page_names_every_picture() -> None:
    page = (ROOT / "docs/client.md").read_text("utf-8")
    assert set(re.findall(r"plot\.(\w+)\(", page)) == {"risk_coverage", "reliability", "label_board"}
