"""The arm SetFit: what is sent to its process, and what its answer becomes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.decisions import setfit_arm
from benchmarks.decisions.arms import Cost, Trial
from tests.benchmarks.decisions.test_decisions import CASES, GOOD, TOPIC, model

# Answers with 3/4 for the first class of each support, in the order of the alphabet.
FAKE = """
import json, sys
request = json.load(sys.stdin)
supports = []
for support in request["supports"]:
    classes = sorted({label for _, label in support})
    row = [0.75] + [0.25 / (len(classes) - 1)] * (len(classes) - 1)
    supports.append({"classes": classes, "probabilities": [row for _ in request["inputs"]]})
json.dump({"supports": supports, "learn": [2.0, 1.0], "answer": [4.0, 3.0]}, sys.stdout)
"""


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the program that is run in place of SetFit's."""
    path = tmp_path / "fake.py"
    monkeypatch.setattr(setfit_arm, "PROCESS", path)
    monkeypatch.setattr(setfit_arm, "fetch_sentence_encoder", lambda name: tmp_path / name)
    return path


def test_each_question_has_the_classes_of_its_own_cases(process: Path) -> None:
    process.write_text(FAKE)
    arm = setfit_arm.setfit(Path(sys.executable))
    found = arm(model(), Trial([GOOD, TOPIC], CASES[:3], ["one", "two"], 0))
    assert (found.learn, found.answer) == (Cost(2, 1), Cost(4, 3))
    good, topic = found.rows[1]
    # "cannot tell", "no" and "yes": all three were shown.
    assert good.answerable == pytest.approx(0.25)
    assert good.probabilities == pytest.approx((0.5, 0.5))
    # "film" and "story", and "cannot tell" without an example: add-one over 3 cases, 3 options.
    assert topic.answerable == pytest.approx(5 / 6)
    assert topic.probabilities == pytest.approx((0.75, 0.25))


def test_a_question_with_one_answer_is_not_fitted_and_a_failure_is_shown(process: Path) -> None:
    process.write_text(FAKE.replace("supports = []", "assert len(request['supports']) == 1; supports = []"))
    arm = setfit_arm.setfit(Path(sys.executable))
    found = arm(model(), Trial([GOOD, TOPIC], CASES[2:], ["one"], 0))  # all about films
    assert found.rows[0][1].probabilities[0] == max(found.rows[0][1].probabilities)
    process.write_text("raise SystemExit('no such encoder')")
    with pytest.raises(SystemExit, match="no such encoder"):
        arm(model(), Trial([GOOD], CASES[:2], ["one"], 0))
