"""The answers of every surface are those of the code before its rebuild (commit e377baa).

Six differences are on purpose: the message that says why there is no calibrated confidence, the
field `calibrator` of models, which was always null, the setting's name in the message of a limit,
the field `contradicted` of feedback, the field `posteriors` of models, and what `/v1/limits` and
`/v1/models` say for decisions, with 256 options.
"""

import json
from pathlib import Path

import pytest

from tests.golden.scenario import answers_now, differences

# Threads, processors and batches change the order of sums: by up to 1e-4 in fp32, measured.
TOLERANCE = 1e-3


@pytest.mark.slow  # `pytest -m slow tests/golden`: a minute
def test_answers_are_those_of_the_golden_file() -> None:
    expected = json.loads((Path(__file__).parent / "answers.json").read_text("utf-8"))
    assert differences(answers_now(), expected, TOLERANCE) == []
